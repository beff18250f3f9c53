package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// KubeEvent is one completed write (or any other request) from the audit log of
// the Kubernetes API server, reduced to what the verdicts need.
type KubeEvent struct {
	User        string
	Verb        string
	Group       string
	Resource    string
	Subresource string
	Namespace   string
	Name        string
	UID         string
	Code        int
	Time        time.Time // When the request came in.
	Done        time.Time // When it was answered.
	Labels      map[string]string
	DryRun      bool
}

// Succeeded tells whether the request was answered with success.
func (e KubeEvent) Succeeded() bool { return e.Code >= 200 && e.Code < 300 }

// changed tells whether the event changed or deleted an object that was there.
func (e KubeEvent) changed() bool {
	return e.Succeeded() && !e.DryRun && e.Subresource == "" && slices.Contains([]string{"delete", "patch", "update"}, e.Verb) && !e.created()
}

// created tells whether the event brought a new object into being: a POST, or
// an apply or update answered with 201.
func (e KubeEvent) created() bool {
	if e.DryRun || e.Subresource != "" || !e.Succeeded() {
		return false
	}
	return e.Verb == "create" || e.Code == http.StatusCreated
}

// mayHaveCreated tells whether the event is a POST that the server did not answer
// with success and may have carried out all the same: a client that goes away
// while it waits is logged with 504, committed or not.
func (e KubeEvent) mayHaveCreated() bool {
	return e.Verb == "create" && !e.DryRun && e.Subresource == "" && e.Name != "" && e.Code >= http.StatusInternalServerError
}

// wireKubeEvent is the part of audit.k8s.io/v1 Event that is read.
type wireKubeEvent struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Stage      string `json:"stage"`
	RequestURI string `json:"requestURI"`
	Verb       string `json:"verb"`
	User       struct {
		Username string `json:"username"`
	} `json:"user"`
	ObjectRef *struct {
		Resource    string `json:"resource"`
		Namespace   string `json:"namespace"`
		Name        string `json:"name"`
		UID         string `json:"uid"`
		APIGroup    string `json:"apiGroup"`
		Subresource string `json:"subresource"`
	} `json:"objectRef"`
	ResponseStatus *struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
	RequestObject            *wireObject `json:"requestObject"`
	ResponseObject           *wireObject `json:"responseObject"`
	RequestReceivedTimestamp time.Time   `json:"requestReceivedTimestamp"`
	StageTimestamp           time.Time   `json:"stageTimestamp"`
}

// wireObject is the metadata of a logged body.
type wireObject struct {
	Metadata struct {
		Name   string            `json:"name"`
		UID    string            `json:"uid"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
}

// ReadKubeLog reads the audit log of the API server (JSON lines of
// audit.k8s.io/v1) to its end and gives the requests on objects that were
// answered. It works from level Metadata on; bodies, where logged, add the
// object's UID and labels.
func ReadKubeLog(r io.Reader) ([]KubeEvent, error) {
	var events []KubeEvent
	err := readLines(r, func(line int, data []byte) error {
		var wire wireKubeEvent
		if err := json.Unmarshal(data, &wire); err != nil {
			return fmt.Errorf("kubernetes audit log, line %d: %w", line, err)
		}
		if wire.Kind != "Event" || !strings.HasPrefix(wire.APIVersion, "audit.k8s.io/") {
			return fmt.Errorf("kubernetes audit log, line %d: is a %q of %q, not an audit event", line, wire.Kind, wire.APIVersion)
		}
		if wire.Stage != "ResponseComplete" || wire.ObjectRef == nil || wire.ResponseStatus == nil {
			return nil
		}
		events = append(events, reduceKubeEvent(wire))
		return nil
	})
	return events, err
}

func reduceKubeEvent(wire wireKubeEvent) KubeEvent {
	event := KubeEvent{
		User: wire.User.Username, Verb: wire.Verb,
		Group: wire.ObjectRef.APIGroup, Resource: wire.ObjectRef.Resource, Subresource: wire.ObjectRef.Subresource,
		Namespace: wire.ObjectRef.Namespace, Name: wire.ObjectRef.Name, UID: wire.ObjectRef.UID,
		Code: wire.ResponseStatus.Code, Time: wire.RequestReceivedTimestamp, Done: wire.StageTimestamp,
		DryRun: isDryRun(wire.RequestURI),
	}
	// A refused create is answered with a Status, whose metadata is empty.
	for _, object := range []*wireObject{wire.RequestObject, wire.ResponseObject} {
		if object == nil {
			continue
		}
		if event.Name == "" {
			event.Name = object.Metadata.Name
		}
		if event.UID == "" {
			event.UID = object.Metadata.UID
		}
		if len(object.Metadata.Labels) > 0 {
			event.Labels = object.Metadata.Labels
		}
	}
	return event
}

func isDryRun(requestURI string) bool {
	parsed, err := url.ParseRequestURI(requestURI)
	return err == nil && parsed.Query().Has("dryRun")
}
