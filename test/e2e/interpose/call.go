package interpose

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
)

// Moment is where a call stands when the callback is asked.
type Moment int

// The moments of a call.
const (
	// Before is when the client has sent it and the server has not seen it.
	Before Moment = iota
	// Sent is when the server has done it and the client has no answer.
	Sent
	// Answered is when the client has the answer; of a watch, its beginning.
	Answered
)

// String names the moment.
func (m Moment) String() string {
	switch m {
	case Before:
		return "before"
	case Sent:
		return "sent"
	case Answered:
		return "answered"
	default:
		return fmt.Sprintf("moment %d", int(m))
	}
}

// Call is one request to a server.
type Call struct {
	N      int // Counted from 0 over all calls through one handler.
	Server string
	Method string
	Path   string
	Watch  bool   // The answer of the API server goes on until somebody ends it.
	Remote string // The client's address.
}

// String shows the call as in an access log.
func (c Call) String() string { return fmt.Sprintf("#%d %s %s %s", c.N, c.Server, c.Method, c.Path) }

// aNumber is a part of a path that names one thing of many: a number, a version or a GUID.
var aNumber = regexp.MustCompile(`^([0-9][0-9.]*|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$`)

// Kind is what the call does and to what kind of thing, such as "kubernetes PATCH jobs/*":
// calls of one kind differ in the thing alone. It has three parts without spaces.
func (c Call) Kind() string {
	method, path := c.Method, ofObjects(c.Path)
	switch {
	case path == "":
		path = ofService(c.Path)
	case c.Watch:
		method = "WATCH"
	case method == http.MethodGet && !strings.Contains(path, "/"):
		method = "LIST"
	}
	return c.Server + " " + method + " " + path
}

// ofObjects is the kind of object that a path of the Kubernetes API leads to, with a star for
// its name, and empty for other paths.
func ofObjects(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return ""
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	if len(parts) > 1 {
		parts[1] = "*"
	}
	return strings.Join(parts, "/")
}

// ofService is a path without what names one thing, and without what all paths of the service
// begin with.
func ofService(path string) string {
	path = strings.Trim(path, "/")
	if at := strings.Index(path, "_apis"); at >= 0 {
		path = path[at:]
		path = strings.TrimPrefix(strings.TrimPrefix(path, "_apis/"), "distributedtask/")
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if aNumber.MatchString(part) {
			parts[i] = "*"
		}
	}
	return strings.Join(parts, "/")
}
