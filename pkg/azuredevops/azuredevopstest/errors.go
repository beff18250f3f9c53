package azuredevopstest

import (
	"fmt"
	"net/http"
)

// serviceError is an exception as the service sends it.
type serviceError struct {
	status  int
	typeKey string
	message string
}

func (e *serviceError) Error() string { return e.typeKey + ": " + e.message }

// errorBody is the JSON form of an exception.
type errorBody struct {
	ID             string  `json:"$id"`
	InnerException *string `json:"innerException"`
	Message        string  `json:"message"`
	TypeName       string  `json:"typeName"`
	TypeKey        string  `json:"typeKey"`
	ErrorCode      int     `json:"errorCode"`
	EventID        int     `json:"eventId"`
}

func (e *serviceError) body() errorBody {
	const assembly = "Microsoft.TeamFoundation.DistributedTask.WebApi"
	return errorBody{
		ID:       "1",
		Message:  e.message,
		TypeName: assembly + "." + e.typeKey + ", " + assembly,
		TypeKey:  e.typeKey,
		EventID:  3000,
	}
}

func fail(status int, typeKey, format string, args ...any) *serviceError {
	return &serviceError{status: status, typeKey: typeKey, message: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) *serviceError {
	return fail(http.StatusBadRequest, "VssPropertyValidationException", format, args...)
}

func poolNotFound(id string) *serviceError {
	return fail(http.StatusNotFound, "TaskAgentPoolNotFoundException",
		"No agent pool found with identifier %s.", id)
}

func agentNotFound(pool int, id string) *serviceError {
	return fail(http.StatusNotFound, "TaskAgentNotFoundException",
		"No agent found for pool %d with identifier %s.", pool, id)
}

func requestNotFound(id int64) *serviceError {
	return fail(http.StatusNotFound, "TaskAgentJobNotFoundException",
		"The job request %d could not be found.", id)
}

func accessDenied(who, permission, pool string) *serviceError {
	return fail(http.StatusForbidden, "AccessDeniedException",
		"Access denied. %s needs %s permissions for pool %s to perform the action. For more information, contact the Azure DevOps Services administrator.",
		who, permission, pool)
}

func controllerNotFound(path string) *serviceError {
	return fail(http.StatusNotFound, "VssResourceNotFoundException",
		"The controller for path '%s' was not found or does not implement IController.", path)
}
