package cluster

import (
	"fmt"
	"io"
	"time"
)

// NodeKind says what pods run on.
type NodeKind int

const (
	// Auto is Real where the machine allows it (root, with the right to make
	// namespaces) and Simulated elsewhere.
	Auto NodeKind = iota
	// Real is containerd, runc, kubelet and kube-proxy. It needs root.
	Real
	// Simulated is KWOK: pods have a status, and nothing runs in them.
	Simulated
)

// String gives the word by which the kind is shown to people.
func (k NodeKind) String() string {
	switch k {
	case Auto:
		return "auto"
	case Real:
		return "real"
	case Simulated:
		return "simulated"
	default:
		return fmt.Sprintf("NodeKind(%d)", int(k))
	}
}

// ParseNodeKind reads what String writes.
func ParseNodeKind(text string) (NodeKind, error) {
	for _, kind := range []NodeKind{Auto, Real, Simulated} {
		if text == kind.String() {
			return kind, nil
		}
	}
	return Auto, fmt.Errorf("node kind %q: want auto, real or simulated", text)
}

// Options says what cluster to start. The zero value is good.
type Options struct {
	// Node is the kind of node.
	Node NodeKind
	// Dir is where the cluster's own directory is made, and removed again at the
	// end. Default: the system's directory for temporary files. It should be on a
	// real disk: images are unpacked there.
	Dir string
	// LogDir receives a log file per component and stays after Stop. Default:
	// inside the cluster's directory, gone with it.
	LogDir string
	// AuditLog is the file that receives the API server's audit log, JSON lines,
	// and stays after Stop. Empty means no audit log. In it is every write at
	// least with user, verb and object, no Secret's body, and no read by
	// Kubernetes' own parts; audit-policy.yaml says it in full.
	AuditLog string
	// ControllerManagerQPS is the rate at which kube-controller-manager may call
	// the API server. 0 leaves it at its own default of 20 a second, which is what
	// users have, and which caps a cluster at about 3 Jobs a second.
	ControllerManagerQPS int
	// SimulatedNodes is the number of simulated nodes. Default 1, which holds
	// 10,000 pods. Ignored by the real node.
	SimulatedNodes int
	// NameService has pods of the real node find the cluster's Services by name, and nothing
	// else; otherwise they find no name at all. It takes port 53 of the machine's end of the
	// node's link.
	NameService bool
	// CacheDir is where built programs and base images are kept. Default: the
	// directory azp-scaler/cluster in the user's cache directory.
	CacheDir string
	// ToolModule is the directory of the Go module that names the programs'
	// versions. Default: test/cluster/tools of the repository that the working
	// directory is in.
	ToolModule string
	// Progress receives what takes time: rewritten lines if it is a terminal,
	// plain ones otherwise. Nil means silence.
	Progress io.Writer
	// StartLimit bounds the start once the programs are built. Default 2 minutes.
	StartLimit time.Duration
}

const (
	defaultStartLimit = 2 * time.Minute
	// podsPerSimulatedNode is what KWOK's node says it can hold.
	podsPerSimulatedNode = 10000
)
