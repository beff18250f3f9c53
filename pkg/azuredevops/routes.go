package azuredevops

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	sdk "github.com/microsoft/azure-devops-go-api/azuredevops/v7"
)

// apiVersion is asked for everywhere; the SDK lowers it for an older server.
const apiVersion = "7.1-preview.1"

// The location ids of the routes used here, the same on every server.
const (
	locationPools       = "a8c47e17-4d56-4a56-92bb-de7ea7dc65be"
	locationAgents      = "e298ef32-5878-4cab-993c-043836571f42"
	locationJobRequests = "fc825784-c92a-4299-9221-998a02d1b54f"
	locationPackages    = "8ffcd551-079c-493a-9c02-54346299d144"
)

// checkRoutes makes the answer of OPTIONS _apis fit for the SDK, which keeps the
// first one for ever, takes an empty one for good, and panics on an entry that
// lacks a field. Entries it cannot use are left out, and an answer without the
// routes this package needs is an error.
func checkRoutes(body []byte) ([]byte, error) {
	var answer struct {
		Count int               `json:"count"`
		Value []json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(trimMark(body), &answer); err != nil {
		return nil, err
	}
	missing := []string{locationPools, locationAgents, locationJobRequests, locationPackages}
	usable := answer.Value[:0]
	for _, entry := range answer.Value {
		var location sdk.ApiResourceLocation
		if json.Unmarshal(entry, &location) != nil || checkRoute(location) != nil {
			continue
		}
		usable = append(usable, entry)
		missing = slices.DeleteFunc(missing, func(id string) bool { return id == location.Id.String() })
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%d usable routes, but not those with the location ids %s", len(usable), strings.Join(missing, ", "))
	}
	answer.Value, answer.Count = usable, len(usable)
	return json.Marshal(answer)
}

// checkRoute tells whether the SDK can use a location.
func checkRoute(l sdk.ApiResourceLocation) error {
	if l.Id == nil || *l.Id == uuid.Nil || l.Area == nil || l.ResourceName == nil || l.RouteTemplate == nil || l.ResourceVersion == nil {
		return errors.New("a field is missing")
	}
	for _, version := range []*string{l.MinVersion, l.MaxVersion, l.ReleasedVersion} {
		if version == nil {
			return errors.New("a version is missing")
		}
		if _, err := sdk.NewVersion(*version); err != nil {
			return err
		}
	}
	return nil
}
