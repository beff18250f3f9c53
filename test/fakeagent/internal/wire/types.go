// Package wire is the agent's side of the service's REST protocol: the forms of
// what goes over it, signing in, and the calls that an agent makes.
package wire

import (
	"encoding/json"
	"time"
)

// Pool is an agent pool.
type Pool struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

// Agent is an agent as the service keeps it. Fields that the stand-in neither sends
// nor reads are left out.
type Agent struct {
	ID                 int64             `json:"id,omitempty"`
	Name               string            `json:"name"`
	Version            string            `json:"version"`
	OSDescription      string            `json:"osDescription,omitempty"`
	MaxParallelism     int               `json:"maxParallelism,omitempty"`
	ProvisioningState  string            `json:"provisioningState,omitempty"`
	SystemCapabilities map[string]string `json:"systemCapabilities,omitempty"`
	Authorization      *Authorization    `json:"authorization,omitempty"`
}

// Authorization carries the agent's public key to the service and, in the answer,
// what the agent has to call itself to get a token.
type Authorization struct {
	AuthorizationURL string     `json:"authorizationUrl,omitempty"`
	ClientID         string     `json:"clientId,omitempty"`
	PublicKey        *PublicKey `json:"publicKey,omitempty"`
}

// PublicKey is an RSA key, its numbers base64 and big-endian.
type PublicKey struct {
	Exponent string `json:"exponent"`
	Modulus  string `json:"modulus"`
}

// Session is a listener's session with its pool.
type Session struct {
	ID                 string            `json:"sessionId,omitempty"`
	OwnerName          string            `json:"ownerName"`
	Agent              Agent             `json:"agent"`
	SystemCapabilities map[string]string `json:"systemCapabilities,omitempty"`
	UseFipsEncryption  bool              `json:"useFipsEncryption"`
	EncryptionKey      *struct {
		Value string `json:"value"`
	} `json:"encryptionKey,omitempty"`
}

// Message types.
const (
	MessageJob     = "PipelineAgentJobRequest"
	MessageCancel  = "JobCancellation"
	MessageRefresh = "AgentRefresh"
)

// Message is one entry of a session's queue; Body is JSON in a string.
type Message struct {
	ID   int64  `json:"messageId"`
	Type string `json:"messageType"`
	Body string `json:"body"`
	IV   string `json:"iv"`
}

// JobCancellation is the body of a message that takes a job back.
type JobCancellation struct {
	JobID   string   `json:"jobId"`
	Timeout TimeSpan `json:"timeout"`
}

// AgentRefresh is the body of a message that orders an update.
type AgentRefresh struct {
	AgentID       int64    `json:"agentId"`
	Timeout       TimeSpan `json:"timeout"`
	TargetVersion string   `json:"targetVersion"`
}

// JobRequest is what the listener sends about the request that it runs.
type JobRequest struct {
	RequestID   int64      `json:"requestId"`
	LockedUntil *time.Time `json:"lockedUntil,omitempty"`
	FinishTime  *time.Time `json:"finishTime,omitempty"`
	Result      string     `json:"result,omitempty"`
}

// Job is the body of a job's message.
type Job struct {
	Plan           Plan                `json:"plan"`
	Timeline       Reference           `json:"timeline"`
	JobID          string              `json:"jobId"`
	JobDisplayName string              `json:"jobDisplayName"`
	JobName        string              `json:"jobName"`
	RequestID      int64               `json:"requestId"`
	Resources      Resources           `json:"resources"`
	Variables      map[string]Variable `json:"variables"`
	Steps          []Step              `json:"steps"`
}

// Plan is the orchestration that a job belongs to.
type Plan struct {
	ScopeID string `json:"scopeIdentifier"`
	Type    string `json:"planType"`
	ID      string `json:"planId"`
}

// Reference points at something by its id.
type Reference struct {
	ID string `json:"id"`
}

// Resources is what a job may use.
type Resources struct {
	Endpoints []Endpoint `json:"endpoints"`
}

// Endpoint is a service that a job may call, with the right to do so.
type Endpoint struct {
	Name          string `json:"name"`
	URL           string `json:"url"`
	Authorization struct {
		Scheme     string            `json:"scheme"`
		Parameters map[string]string `json:"parameters"`
	} `json:"authorization"`
}

// Variable is a variable of a job.
type Variable struct {
	Value    string `json:"value"`
	IsSecret bool   `json:"isSecret"`
}

// Step is one task of a job.
type Step struct {
	ID               string            `json:"id"`
	Name             string            `json:"name"`
	DisplayName      string            `json:"displayName"`
	Type             string            `json:"type"`
	Enabled          *bool             `json:"enabled"`
	Condition        string            `json:"condition"`
	ContinueOnError  bool              `json:"continueOnError"`
	TimeoutInMinutes int               `json:"timeoutInMinutes"`
	Reference        TaskReference     `json:"reference"`
	Inputs           map[string]string `json:"inputs"`
	Environment      map[string]string `json:"environment"`
}

// TaskReference names the task that a step runs.
type TaskReference struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Record is an entry of a job's timeline.
type Record struct {
	ID              string     `json:"id"`
	ParentID        string     `json:"parentId,omitempty"`
	Type            string     `json:"type"`
	Name            string     `json:"name"`
	RefName         string     `json:"refName,omitempty"`
	Order           int        `json:"order,omitempty"`
	StartTime       *time.Time `json:"startTime,omitempty"`
	FinishTime      *time.Time `json:"finishTime,omitempty"`
	State           string     `json:"state"`
	Result          string     `json:"result,omitempty"`
	PercentComplete int        `json:"percentComplete,omitempty"`
	WorkerName      string     `json:"workerName,omitempty"`
	ErrorCount      int        `json:"errorCount,omitempty"`
	WarningCount    int        `json:"warningCount,omitempty"`
	Issues          []Issue    `json:"issues,omitempty"`
	Log             *LogRef    `json:"log,omitempty"`
}

// Issue is an error or a warning shown on a record.
type Issue struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// LogRef points at a log by its number.
type LogRef struct {
	ID int64 `json:"id"`
}

// Log is a container of log lines.
type Log struct {
	ID   int64  `json:"id,omitempty"`
	Path string `json:"path"`
}

// Event is what the worker tells the plan when its job is over.
type Event struct {
	Name      string `json:"name"`
	JobID     string `json:"jobId"`
	RequestID int64  `json:"requestId"`
	Result    string `json:"result"`
}

// Package is a build of the agent that the service offers.
type Package struct {
	Type        string         `json:"type"`
	Platform    string         `json:"platform"`
	Version     PackageVersion `json:"version"`
	DownloadURL string         `json:"downloadUrl"`
	HashValue   string         `json:"hashValue"`
	Filename    string         `json:"filename"`
}

// PackageVersion is a version in parts.
type PackageVersion struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Patch int `json:"patch"`
}

// ConnectionData is the service's answer to a first hello.
type ConnectionData struct {
	DeploymentType json.RawMessage `json:"deploymentType"`
	InstanceID     string          `json:"instanceId"`
}

// Results of jobs and steps, as the protocol writes them.
const (
	ResultSucceeded = "succeeded"
	ResultIssues    = "succeededWithIssues"
	ResultFailed    = "failed"
	ResultCanceled  = "canceled"
	ResultSkipped   = "skipped"
	ResultAbandoned = "abandoned"
)

// Results lists the results in the order of their numbers in the protocol.
func Results() []string {
	return []string{ResultSucceeded, ResultIssues, ResultFailed, ResultCanceled, ResultSkipped, ResultAbandoned}
}
