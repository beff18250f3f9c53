package azuredevopstest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Rights is what a personal access token may do.
type Rights int

// The rights a token can have. They are ordered: each includes those before it.
const (
	// RightsNone signs in and may do nothing: pools answer 403.
	RightsNone Rights = iota
	// RightsRead is the scope Agent Pools (read).
	RightsRead
	// RightsManage is the scope Agent Pools (read & manage) together with the
	// administrator role of the pools.
	RightsManage
)

// SignInFailure says how the service answers a token it does not know.
type SignInFailure int

// The answers seen for a bad token.
const (
	// SignInHTML is status 203 with an HTML sign-in page, the usual one.
	SignInHTML SignInFailure = iota
	// SignInRedirect is status 302 to the sign-in page. A caller that sent
	// "X-TFS-FedAuthRedirect: Suppress" is answered 401 instead.
	SignInRedirect
	// SignInDenied is status 401 with TF400813.
	SignInDenied
)

// Token is a token the service knows: a personal access token, or an access token of
// Microsoft Entra, which it takes in the same two ways.
type Token struct {
	// Secret is the token itself, the password of Basic sign-in or a Bearer.
	Secret string `json:"secret"`
	// Identity names its owner in the audit log; the default is "user".
	Identity string `json:"identity,omitempty"`
	// Rights is what it may do.
	Rights Rights `json:"rights,omitempty"`
	// Expired makes each request fail with 401 and the expiry message.
	Expired bool `json:"expired,omitempty"`
	// Expires is when an access token of Entra ends, after which it is answered like one
	// that is unknown; zero is never.
	Expires time.Time `json:"expires,omitzero"`
	// Pools are the names of the pools it sees; nil means all of them.
	Pools []string `json:"pools,omitempty"`
}

// AgentPackage is a downloadable agent.
type AgentPackage struct {
	// Platform is the service's name for it, such as linux-x64.
	Platform string
	// Version has three numbers, such as 4.260.0.
	Version string
	// Path is the tarball's file. It is read when it is first asked for.
	Path string
	// WrongHash makes the service announce a SHA-256 that is not the file's.
	WrongHash bool
}

// Options configures a Server. The zero value is a usable organisation
// "acme" that nobody may sign in to.
type Options struct {
	// Organisation is the first element of every path; the default is "acme". With a
	// slash in it, such as tfs/DefaultCollection, the service is an Azure DevOps Server
	// and this one of its collections.
	Organisation string
	// Seed determines every choice the service makes.
	Seed uint64
	// Tick is the time between two rounds of assignment; the default is 100 ms.
	Tick time.Duration
	// Tokens are the personal access tokens known at the start.
	Tokens []Token
	// Packages are the agents to download.
	Packages []AgentPackage
	// SignInToDownload has the service itself serve the packages, to those who may read
	// pools, as an Azure DevOps Server may that has no way to the public network.
	SignInToDownload bool
	// ParallelJobs is the number of jobs the organisation may run at once;
	// 0 means no limit.
	ParallelJobs int
	// Latency is added to every answer.
	Latency time.Duration

	// LockDuration is how long a job's lock lives after its last renewal; the
	// default is 5 minutes.
	LockDuration time.Duration
	// ReceiveTimeout is how long an assigned request waits for its agent to
	// take it up before it is abandoned; the default is 1 minute.
	ReceiveTimeout time.Duration
	// MessageWait is how long a poll for messages is held open; the default
	// is 50 s, as with the service.
	MessageWait time.Duration
	// OnlineTimeout is how long after its last poll an agent still counts as
	// online; the default is 1 minute.
	OnlineTimeout time.Duration
	// SessionTimeout is how long a session without polls lives, and so how
	// long a crashed agent keeps its successor out; the default is 5 minutes.
	SessionTimeout time.Duration
	// CancelTimeout is how long a running job may take to obey a
	// cancellation before it is abandoned; the default is 1 minute.
	CancelTimeout time.Duration

	// Around wraps what StartTLS serves, so that a test can hold calls up; nil leaves it as
	// it is.
	Around func(http.Handler) http.Handler
	// AuditLog receives the audit log; nil keeps it in memory only.
	AuditLog io.Writer
	// NoSecondJob turns the window for a second job off (see the package's
	// documentation). It is on by default, as with the service.
	NoSecondJob bool
	// MinAgentVersion is what the service adds to every request's demands as
	// "Agent.Version -gtVersion"; the default is 2.182.1.
	MinAgentVersion string
	// SignInFailure is the answer to unknown tokens.
	SignInFailure SignInFailure
	// AllowPlainHTTP accepts Basic sign-in over plain HTTP.
	AllowPlainHTTP bool
	// RefuseDeleteAssigned refuses to delete an agent whose job was assigned
	// but not yet taken up. Nobody has verified that the service does, so by
	// default such an agent is deleted and its build is lost.
	RefuseDeleteAssigned bool
	// BOM puts a UTF-8 byte order mark before every JSON answer.
	BOM bool
	// NumericEnums writes enumerations as numbers. It is what callers get who
	// ask for "enumsAsNumbers=true" in Accept.
	NumericEnums bool
	// ControlToken is the bearer token of the control API; empty means none
	// is asked for.
	ControlToken string
}

var (
	organisationName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*(/[A-Za-z0-9][A-Za-z0-9-]*)?$`)
	versionNumber    = regexp.MustCompile(`^\d+\.\d+\.\d+$`)
)

// withDefaults returns the options with the gaps filled, or all that is wrong
// with them.
func (o Options) withDefaults() (Options, error) {
	var wrong []error
	if o.Organisation == "" {
		o.Organisation = "acme"
	}
	if !organisationName.MatchString(o.Organisation) {
		wrong = append(wrong, fmt.Errorf("option Organisation %q: use letters, digits and dashes, for a collection with one slash", o.Organisation))
	}
	if o.MinAgentVersion == "" {
		o.MinAgentVersion = "2.182.1"
	}
	if !versionNumber.MatchString(o.MinAgentVersion) {
		wrong = append(wrong, fmt.Errorf("option MinAgentVersion %q: use three numbers such as 2.182.1", o.MinAgentVersion))
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"Tick", &o.Tick, 100 * time.Millisecond},
		{"Latency", &o.Latency, 0},
		{"LockDuration", &o.LockDuration, 5 * time.Minute},
		{"ReceiveTimeout", &o.ReceiveTimeout, time.Minute},
		{"MessageWait", &o.MessageWait, 50 * time.Second},
		{"OnlineTimeout", &o.OnlineTimeout, time.Minute},
		{"SessionTimeout", &o.SessionTimeout, 5 * time.Minute},
		{"CancelTimeout", &o.CancelTimeout, time.Minute},
	} {
		if *d.value < 0 {
			wrong = append(wrong, fmt.Errorf("option %s %s: it must not be negative", d.name, *d.value))
		}
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if o.ParallelJobs < 0 {
		wrong = append(wrong, fmt.Errorf("option ParallelJobs %d: use 0 for no limit", o.ParallelJobs))
	}
	for i, t := range o.Tokens {
		if err := t.validate(); err != nil {
			wrong = append(wrong, fmt.Errorf("option Tokens[%d]: %w", i, err))
		}
	}
	for i, p := range o.Packages {
		if p.Platform == "" || p.Path == "" || strings.ContainsAny(p.Platform, "/ ") {
			wrong = append(wrong, fmt.Errorf("option Packages[%d]: Platform %q and Path %q must be set", i, p.Platform, p.Path))
		}
		if !versionNumber.MatchString(p.Version) {
			wrong = append(wrong, fmt.Errorf("option Packages[%d]: Version %q: use three numbers such as 4.260.0", i, p.Version))
		}
	}
	return o, errors.Join(wrong...)
}

func (t Token) validate() error {
	switch {
	case t.Secret == "":
		return errors.New("a token needs a Secret")
	case t.Rights < RightsNone || t.Rights > RightsManage:
		return fmt.Errorf("rights %d: use RightsNone, RightsRead or RightsManage", t.Rights)
	}
	return nil
}
