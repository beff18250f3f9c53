package hostile

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

// The kinds of places in which the build looks.
const (
	InEnvironment = "environment" // Its own.
	InProcess     = "process"     // Environment, command line, open files and root of another.
	InMemory      = "memory"      // Of another process.
	InFile        = "file"
	InNetwork     = "network" // What the pod's ports and some others answer.
	InAPI         = "api"     // What the API server answers.
)

// Kinds are all kinds of places.
func Kinds() []string {
	return []string{InEnvironment, InProcess, InMemory, InFile, InNetwork, InAPI}
}

// Plan is what a build is to do.
type Plan struct {
	Shapes []canary.Shape
	Calls  []Call
	Pages  []string // Addresses to look at besides those of the pod.
	// Elsewhere is where the spoilt files lead: no request must ever come there.
	Elsewhere string
}

// Call is a request to the API server with the build's own account. In path and body
// {pod} and {job} are the build's own.
type Call struct {
	Method string
	Path   string
	Body   string `json:",omitempty"`
	As     string `json:",omitempty"` // A user to act as.
	Keep   bool   `json:",omitempty"` // The answer's body is wanted.
	// Want is the status that is to come; 0 is any.
	Want int `json:",omitempty"`
}

// String is the call as it stands in reports.
func (c Call) String() string {
	text := c.Method + " " + c.Path
	if c.As != "" {
		text += " as " + c.As
	}
	return text
}

// Answer is what came of a call.
type Answer struct {
	Call Call
	Code int
	Body string `json:",omitempty"`
}

// Finding is a secret in a place.
type Finding struct{ Kind, Name, Where string }

// Report is what a build tells at its end.
type Report struct {
	Pod, Job string
	Findings []Finding
	Looked   map[string]int // Places of each kind that could be read.
	Ports    []string       // On which something listens in the pod.
	Answers  []Answer
	Writable []string // Folders of others than the build's own.
	Spoiled  []string // Files of the agent program.
	Planted  []string // Traps.
	Account  string   // The token of the build's ServiceAccount.
	Agent    map[string][]byte
	Troubles []string // What could not be done that should have been.
}

// Found gives the kinds of places in which a secret was.
func (r Report) Found(name string) []string {
	var kinds []string
	for _, f := range r.Findings {
		if f.Name == name && !slices.Contains(kinds, f.Kind) {
			kinds = append(kinds, f.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// Redacted is the report without what a log must not have.
func (r Report) Redacted() string {
	r.Account, r.Agent = "", nil
	var odd []Answer
	for _, a := range r.Answers {
		if a.Call.Want != 0 && a.Code != a.Call.Want {
			odd = append(odd, a)
		}
	}
	r.Answers = odd
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// AgentFiles are those that an agent signs in with, in the agent's root.
func AgentFiles() []string { return []string{".agent", ".credentials", ".credentials_rsaparams"} }

// jobOf is the name of the Job that a pod is of.
func jobOf(pod string) string {
	if i := strings.LastIndex(pod, "-"); i > 0 {
		return pod[:i]
	}
	return pod
}
