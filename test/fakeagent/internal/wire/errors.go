package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Type keys of errors on which the agent decides something.
const (
	KeyAgentExists     = "TaskAgentExistsException"
	KeyAgentNotFound   = "TaskAgentNotFoundException"
	KeyPoolNotFound    = "TaskAgentPoolNotFoundException"
	KeySessionConflict = "TaskAgentSessionConflictException"
	KeySessionExpired  = "TaskAgentSessionExpiredException"
	KeyJobNotFound     = "TaskAgentJobNotFoundException"
	KeyJobTokenExpired = "TaskAgentJobTokenExpiredException"
	KeyTokenExpired    = "TaskAgentAccessTokenExpiredException"
	KeyAccessDenied    = "AccessDeniedException"
	KeyUnauthorized    = "UnauthorizedRequestException"
)

// ServiceError is a refusal by the service.
type ServiceError struct {
	Operation string // Method and path, without the query.
	Status    int
	TypeKey   string
	Message   string
}

// Error gives the service's own words, for it is those that the agent prints.
func (e *ServiceError) Error() string {
	if e.Message != "" {
		return e.Message
	}
	return fmt.Sprintf("%s answered %d (%s)", e.Operation, e.Status, http.StatusText(e.Status))
}

// UnauthorizedError is a sign-in that failed, in whatever form the service says so.
type UnauthorizedError struct {
	Host    string
	Status  int
	Message string
}

func (e *UnauthorizedError) Error() string {
	if e.Message != "" {
		return e.Message
	}
	return fmt.Sprintf("VS30063: You are not authorized to access https://%s (status %d).", e.Host, e.Status)
}

// HasKey tells whether err is a refusal with one of the type keys.
func HasKey(err error, keys ...string) bool {
	var refusal *ServiceError
	if !errors.As(err, &refusal) {
		return false
	}
	for _, key := range keys {
		if strings.EqualFold(refusal.TypeKey, key) {
			return true
		}
	}
	return false
}

// IsUnauthorized tells whether err is a failed sign-in.
func IsUnauthorized(err error) bool {
	var unauthorized *UnauthorizedError
	return errors.As(err, &unauthorized)
}

// IsConflict tells whether err is a refusal with status 409.
func IsConflict(err error) bool {
	var refusal *ServiceError
	return errors.As(err, &refusal) && refusal.Status == http.StatusConflict
}

func refusal(operation string, status int, body []byte) *ServiceError {
	e := &ServiceError{Operation: operation, Status: status}
	var parsed struct {
		Message string `json:"message"`
		TypeKey string `json:"typeKey"`
	}
	if json.Unmarshal(trimMark(body), &parsed) == nil {
		e.Message, e.TypeKey = parsed.Message, parsed.TypeKey
	}
	return e
}

func trimMark(body []byte) []byte { return bytes.TrimPrefix(body, []byte("\ufeff")) }
