// Package faults holds the switchable misbehaviours of the stand-in agent: which
// there are, how they are written, and how a process learns of its own.
package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Name is a fault or a tunable as written in a list of faults.
type Name string

// The faults of configure and remove.
const (
	// ConfigureFails ends configure with exit 1 before anything is registered.
	ConfigureFails Name = "configure-fails"
	// ConfigureFailsRegistered ends configure with exit 1 once the pool has the
	// agent, so that the registration leaks unless somebody looks for it.
	ConfigureFailsRegistered Name = "configure-fails-registered"
	// ConfigureHangs never comes back, ignoring INT and TERM, before registering.
	ConfigureHangs Name = "configure-hangs"
	// ConfigureHangsRegistered does the same once the pool has the agent.
	ConfigureHangsRegistered Name = "configure-hangs-registered"
	// SlowConfigure waits that long before it connects.
	SlowConfigure Name = "slow-configure"
	// ReplaceLoop makes configure --replace meet an error for ever.
	ReplaceLoop Name = "replace-loop"
)

// The faults of run.
const (
	// NeverRegisters lets run sit there without ever opening a session.
	NeverRegisters Name = "never-registers"
	// SlowListen waits that long before it opens the session.
	SlowListen Name = "slow-listen"
	// CrashBeforeJob kills the listener by SIGKILL once it listens.
	CrashBeforeJob Name = "crash-before-job"
	// CrashDuringJob kills the listener by SIGKILL that long after the job's start.
	CrashDuringJob Name = "crash-during-job"
	// WorkerCrash kills the worker by SIGKILL when it is to start the first step.
	WorkerCrash Name = "worker-crash"
	// HangAfterJob keeps the listener alive for ever after its one job, its
	// session open, deaf to INT and TERM.
	HangAfterJob Name = "hang-after-job"
	// Exit4Update makes so many runs update themselves to the version they have.
	Exit4Update Name = "exit-4-update"
	// UpdateGap is how long bin/ is missing during an update.
	UpdateGap Name = "update-gap"
	// UpdateLosesBin ends an update without bin/ ever coming back.
	UpdateLosesBin Name = "update-loses-bin"
	// ListenerExit2 ends so many runs with the retryable exit code 2.
	ListenerExit2 Name = "listener-exit-2"
	// IgnoreInt makes the listener deaf to SIGINT.
	IgnoreInt Name = "ignore-int"
	// IgnoreCancel makes the listener deaf to JobCancellation.
	IgnoreCancel Name = "ignore-cancel"
	// NoRenew stops the renewal of the job's lock after the first one.
	NoRenew Name = "no-renew"
	// Linger is how long a once-agent takes from the finish of its job to the end
	// of its session: the window in which a second job can be assigned.
	Linger Name = "linger"
)

// The tunables, which hurry or delay what the real agent does as well.
const (
	// NoWorkerDelay takes the half seconds out of "Initialize job" and "Finalize job".
	NoWorkerDelay Name = "no-worker-delay"
	// WorkerDelay is how long each of the two takes instead.
	WorkerDelay Name = "worker-delay"
	// RenewInterval is the time between two renewals of the lock.
	RenewInterval Name = "renew-interval"
	// KeepAliveInterval is the pause between two keep-alive polls.
	KeepAliveInterval Name = "keep-alive-interval"
	// RetryInterval is the pause after a failed attempt to open a session or to poll.
	RetryInterval Name = "retry-interval"
	// PollPause is a pause after each poll that brought no message.
	PollPause Name = "poll-pause"
)

type kind int

const (
	flag kind = iota
	duration
	count
	text
)

type spec struct {
	kind kind
	// bare is the value that a name written without one stands for.
	bare string
}

func specs() map[Name]spec {
	return map[Name]spec{
		ConfigureFails:           {kind: text, bare: "The server said no."},
		ConfigureFailsRegistered: {kind: flag},
		ConfigureHangs:           {kind: flag},
		ConfigureHangsRegistered: {kind: flag},
		SlowConfigure:            {kind: duration, bare: "5s"},
		ReplaceLoop:              {kind: flag},
		NeverRegisters:           {kind: flag},
		SlowListen:               {kind: duration, bare: "5s"},
		CrashBeforeJob:           {kind: duration, bare: "0s"},
		CrashDuringJob:           {kind: duration, bare: "1s"},
		WorkerCrash:              {kind: flag},
		HangAfterJob:             {kind: flag},
		Exit4Update:              {kind: count, bare: "1"},
		UpdateGap:                {kind: duration, bare: "2s"},
		UpdateLosesBin:           {kind: flag},
		ListenerExit2:            {kind: count, bare: "1"},
		IgnoreInt:                {kind: flag},
		IgnoreCancel:             {kind: flag},
		NoRenew:                  {kind: flag},
		Linger:                   {kind: duration, bare: "2s"},
		NoWorkerDelay:            {kind: flag},
		WorkerDelay:              {kind: duration, bare: "500ms"},
		RenewInterval:            {kind: duration, bare: "60s"},
		KeepAliveInterval:        {kind: duration, bare: "30s"},
		RetryInterval:            {kind: duration, bare: "30s"},
		PollPause:                {kind: duration, bare: "5s"},
	}
}

// Names lists every fault and tunable in alphabetical order.
func Names() []Name { return slices.Sorted(maps.Keys(specs())) }

// Set is the faults that are switched on. The zero value has none.
type Set struct {
	values map[Name]string
	state  string
}

// Parse reads `name` or `name=value`, separated by commas or line ends; blank
// entries and lines that start with # are skipped.
func Parse(list string) (Set, error) {
	set := Set{values: map[Name]string{}}
	known := specs()
	var problems []error
	for entry := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == '\n' }) {
		entry = strings.TrimSpace(entry)
		if entry == "" || strings.HasPrefix(entry, "#") {
			continue
		}
		name, value, found := strings.Cut(entry, "=")
		spec, ok := known[Name(name)]
		if !ok {
			problems = append(problems, fmt.Errorf("fault %q is unknown: want one of %q", name, Names()))
			continue
		}
		if !found {
			value = spec.bare
		}
		if err := spec.check(value, found); err != nil {
			problems = append(problems, fmt.Errorf("fault %q: %w", entry, err))
			continue
		}
		set.values[Name(name)] = value
	}
	return set, errors.Join(problems...)
}

func (s spec) check(value string, given bool) error {
	switch s.kind {
	case flag:
		if given {
			return errors.New("takes no value: write the name alone")
		}
	case duration:
		if d, err := time.ParseDuration(value); err != nil || d < 0 {
			return errors.New("want a duration such as 500ms or 2s")
		}
	case count:
		if n, err := strconv.Atoi(value); err != nil || n < 0 {
			return errors.New("want a number of runs such as 1")
		}
	case text:
	}
	return nil
}

// Load gathers the faults of an agent root: those of externals/faults, then those
// of the comma list in fromEnv. stateDir is where faults that strike a number of
// runs keep their tally.
func Load(root, fromEnv, stateDir string) (Set, error) {
	path := filepath.Join(root, "externals", "faults")
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Set{}, fmt.Errorf("read the faults of the agent root: %w", err)
	}
	set, err := Parse(string(content))
	if err != nil {
		return Set{}, fmt.Errorf("%s: %w", path, err)
	}
	set.state = stateDir
	set, err = set.With(fromEnv)
	if err != nil {
		return Set{}, fmt.Errorf("FAKEAGENT_FAULTS: %w", err)
	}
	return set, nil
}

// With adds the faults of a list to those of the set, whose own are kept.
func (s Set) With(list string) (Set, error) {
	more, err := Parse(list)
	if err != nil {
		return Set{}, err
	}
	merged := Set{values: map[Name]string{}, state: s.state}
	maps.Copy(merged.values, s.values)
	maps.Copy(merged.values, more.values)
	return merged, nil
}

// String writes the set as a comma list that Parse reads.
func (s Set) String() string {
	var entries []string
	for _, name := range slices.Sorted(maps.Keys(s.values)) {
		if specs()[name].kind == flag {
			entries = append(entries, string(name))
		} else {
			entries = append(entries, string(name)+"="+s.values[name])
		}
	}
	return strings.Join(entries, ",")
}

// Has tells whether the fault is switched on.
func (s Set) Has(name Name) bool {
	_, ok := s.values[name]
	return ok
}

// Text gives the fault's value, empty when it is off.
func (s Set) Text(name Name) string { return s.values[name] }

// Duration gives the fault's duration, or otherwise when it is off.
func (s Set) Duration(name Name, otherwise time.Duration) time.Duration {
	value, ok := s.values[name]
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return otherwise
	}
	return d
}

// Strike tells whether a fault that is meant for a number of runs strikes this
// one, and counts it. The tally is in the agent root, so that it outlives the
// process.
func (s Set) Strike(name Name) (bool, error) {
	limit, err := strconv.Atoi(s.values[name])
	if err != nil {
		return false, nil
	}
	if err := os.MkdirAll(s.state, 0o755); err != nil {
		return false, fmt.Errorf("make the folder of the fault %s: %w", name, err)
	}
	path := filepath.Join(s.state, "fault-"+string(name))
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("read the tally of the fault %s: %w", name, err)
	}
	struck := len(content)
	if struck >= limit {
		return false, nil
	}
	if err := os.WriteFile(path, append(content, '.'), 0o644); err != nil {
		return false, fmt.Errorf("write the tally of the fault %s: %w", name, err)
	}
	return true, nil
}
