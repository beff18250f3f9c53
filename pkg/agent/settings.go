package agent

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/azuredevops"
)

// Step is a part of the entrypoint's work that can be run by itself.
type Step string

// The steps, named as their subcommands.
const (
	StepConfigure Step = "configure"
	StepRun       Step = "run"
	StepRemove    Step = "remove"
	StepWithdraw  Step = "withdraw"
	// StepDownload gets the agent program where the scaler registers the agent.
	StepDownload Step = "download"
	// StepAll is configure, run and remove in turn, without a subcommand.
	StepAll Step = "all"
)

// Source is where the agent program comes from.
type Source string

// The sources of the agent program.
const (
	// SourceAuto takes the program of the image if there is one, else downloads it.
	SourceAuto Source = "auto"
	// SourceImage expects the program in the agent root.
	SourceImage Source = "image"
	// SourceDownload takes the service's package of the platform.
	SourceDownload Source = "download"
)

// ProbesOff as Settings.ProbeAddress switches the probes off.
const ProbesOff = "off"

// Settings is everything that the steps are told. The entrypoint fills it from
// the environment; the names in the comments are the variables'.
type Settings struct {
	// URL of the organisation or collection (AZP_URL).
	URL string
	// Pool is the name of the agent pool (AZP_POOL).
	Pool string
	// Registration says who registers the agent: configure, in this pod, or the scaler
	// (AZP_REGISTRATION). Only run asks.
	Registration agentpool.Registration
	// Token gives the pool's credential, as AZP_AUTH says; nil for run.
	Token azuredevops.TokenSource
	// AgentName is the name to register (AZP_AGENT_NAME).
	AgentName string
	// Work is the agent's work folder (AZP_WORK).
	Work string
	// CAFile is a PEM file of roots to trust besides the system's (AZP_CA_FILE); may be empty.
	CAFile string
	// Proxy is the agent program's way to the service (AZP_PROXY_URL, AZP_NO_PROXY and the
	// files with user and password); without a URL it has the one it finds by itself.
	Proxy azuredevops.Proxy

	// Root is the folder of the agent program (AZP_AGENT_ROOT). It must be writable.
	Root string
	// Source of the agent program (AZP_AGENT_SOURCE).
	Source Source
	// Version of the package to download, empty for the newest (AZP_AGENT_VERSION).
	Version string
	// Platform of the package to download, such as linux-x64 (AZP_PLATFORM).
	Platform string
	// Package is what the download step downloads, as the scaler was told by the service
	// (AZP_PACKAGE_URL, AZP_PACKAGE_SHA256; its version is AZP_AGENT_VERSION).
	Package azuredevops.Package

	// HandoverDir holds the agent's own files on their way from configure to run (AZP_HANDOVER_DIR).
	HandoverDir string
	// RegistrationDir holds the agent's id on its way from configure to remove (AZP_REGISTRATION_DIR).
	RegistrationDir string
	// VerdictDir holds what became of a withdrawal (AZP_VERDICT_DIR).
	VerdictDir string
	// ClaimedDir holds the sign that a build was claimed (AZP_CLAIMED_DIR).
	ClaimedDir string

	// Grace is the pod's grace period (AZP_GRACE_PERIOD).
	Grace time.Duration
	// RemoveShare is the part of Grace that is kept for remove (AZP_REMOVE_SHARE).
	RemoveShare time.Duration
	// WithdrawLimit is how long the question whether the agent is idle may take (AZP_WITHDRAW_LIMIT).
	WithdrawLimit time.Duration
	// ConfigureLimit is how long registration may take, all tries together (AZP_CONFIGURE_LIMIT).
	ConfigureLimit time.Duration
	// DownloadLimit is how long download and unpacking may take (AZP_DOWNLOAD_LIMIT).
	DownloadLimit time.Duration
	// HangLimit is how long the listener may stay after a build's result (AZP_HANG_LIMIT).
	HangLimit time.Duration
	// HoldLimit is how long a build is held until its agent is disabled, 0 not at all (AZP_HOLD_LIMIT).
	HoldLimit time.Duration
	// CallbackURL is the scaler's HTTP port, which is told of the claim where the scaler has
	// registered the agent; empty where it only sees it on the pod (AZP_CALLBACK_URL).
	CallbackURL string
	// JobUID is that of the pod's Job, by which the scaler knows the agent (AZP_JOB_UID).
	JobUID string
	// UpdateRestarts is how often the agent may update itself, and how often it may
	// ask to be started again, before it counts as crashed (AZP_UPDATE_RESTARTS).
	UpdateRestarts int
	// IdleLimit is how long All waits for a build, 0 for ever (AZP_IDLE_LIMIT).
	IdleLimit time.Duration
	// ProbeAddress is where the probes are answered, or ProbesOff (AZP_PROBE_ADDRESS).
	ProbeAddress string

	// Environment is the entrypoint's own, as os.Environ gives it. The agent program
	// gets it without the entrypoint's settings.
	Environment []string
	// Hidden are variables of the environment that are the entrypoint's own sign-in without
	// being named as its settings are. The agent program does not get them.
	Hidden []string
	// EffectiveUID is the user the entrypoint runs as.
	EffectiveUID int
}

// Validate says everything that is wrong for a step, in one error that names each
// variable and the remedy; nil if nothing is.
func (s Settings) Validate(step Step) error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if step != StepRun && step != StepDownload {
		s.validateService(add)
	}
	if step != StepRemove && step != StepWithdraw {
		s.validateProxy(add)
	}
	s.validateDurations(step, add)
	for _, dir := range s.directories(step) {
		if !filepath.IsAbs(dir.path) {
			add("%s is %q: give an absolute path", dir.name, dir.path)
		}
	}
	if step == StepConfigure || step == StepAll {
		s.validateProgram(add)
	}
	if step == StepDownload {
		if err := s.Package.Validate(); err != nil {
			add("AZP_PACKAGE_URL, AZP_PACKAGE_SHA256: %w", err)
		}
	}
	if step == StepRun && !slices.Contains(agentpool.Registrations(), s.Registration) {
		add("AZP_REGISTRATION is %q: give config or jit", s.Registration)
	}
	if step == StepRun && s.CallbackURL != "" {
		s.validateCallback(add)
	}
	if step == StepRun || step == StepAll {
		if s.ProbeAddress != ProbesOff {
			if _, _, err := net.SplitHostPort(s.ProbeAddress); err != nil {
				add("AZP_PROBE_ADDRESS is %q: give HOST:PORT or :PORT, or %q to answer no probes", s.ProbeAddress, ProbesOff)
			}
		}
		if s.UpdateRestarts < 0 {
			add("AZP_UPDATE_RESTARTS is %d: give 0 or more", s.UpdateRestarts)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return &failure{code: ExitConfiguration, err: errors.Join(problems...)}
}

func (s Settings) validateService(add func(string, ...any)) {
	if _, err := azuredevops.ParseURL(s.URL); err != nil {
		add("%w", err)
	}
	if s.Pool == "" {
		add("AZP_POOL is empty: give the name of the agent pool")
	}
	if s.Token == nil {
		add("neither AZP_TOKEN nor AZP_TOKEN_FILE is set: mount a token with the right Agent Pools (read & manage) and name its file in AZP_TOKEN_FILE, or sign in otherwise by AZP_AUTH")
	}
	switch {
	case s.AgentName == "":
		add("AZP_AGENT_NAME is empty and there is no host name: give the agent a name")
	case strings.ContainsAny(s.AgentName, "\"/\\:<>|*?\n\r\t"):
		add("AZP_AGENT_NAME is %q: leave out \" / \\ : < > | * ? and control characters, which the service refuses", s.AgentName)
	}
}

// validateProxy checks what the agent program is told. Its messages repeat no URL, which may
// hold a password.
func (s Settings) validateProxy(add func(string, ...any)) {
	if s.Proxy.HTTPS == "" {
		return
	}
	if err := azuredevops.CheckAgentProxy(s.Proxy.HTTPS.Reveal()); err != nil {
		add("AZP_PROXY_URL %w", err)
	} else if err := s.Proxy.Validate(); err != nil {
		add("AZP_PROXY_URL, AZP_PROXY_USERNAME_FILE, AZP_PROXY_PASSWORD_FILE: %w", err)
	}
	if _, err := azuredevops.BypassPatterns(s.Proxy.NoProxy); err != nil {
		add("AZP_NO_PROXY %w", err)
	}
}

func (s Settings) validateDurations(step Step, add func(string, ...any)) {
	limits := []struct {
		name  string
		value time.Duration
		steps []Step
	}{
		{"AZP_GRACE_PERIOD", s.Grace, []Step{StepRun, StepRemove, StepAll}},
		{"AZP_REMOVE_SHARE", s.RemoveShare, []Step{StepRun, StepRemove, StepAll}},
		{"AZP_WITHDRAW_LIMIT", s.WithdrawLimit, []Step{StepRun, StepWithdraw, StepAll}},
		{"AZP_CONFIGURE_LIMIT", s.ConfigureLimit, []Step{StepConfigure, StepAll}},
		{"AZP_DOWNLOAD_LIMIT", s.DownloadLimit, []Step{StepConfigure, StepDownload, StepAll}},
		{"AZP_HANG_LIMIT", s.HangLimit, []Step{StepRun, StepAll}},
	}
	for _, limit := range limits {
		for _, wanted := range limit.steps {
			if wanted == step && limit.value <= 0 {
				add("%s is %s: give a duration above 0, such as 60s", limit.name, limit.value)
			}
		}
	}
	if (step == StepRun || step == StepAll) && s.Grace > 0 && s.RemoveShare >= s.Grace {
		add("AZP_REMOVE_SHARE is %s and AZP_GRACE_PERIOD %s: the share must be less, or the build gets nothing", s.RemoveShare, s.Grace)
	}
	if (step == StepRun || step == StepAll) && s.HoldLimit < 0 {
		add("AZP_HOLD_LIMIT is %s: give 0 to hold no build, or a duration above 0", s.HoldLimit)
	}
	if step == StepAll && s.IdleLimit < 0 {
		add("AZP_IDLE_LIMIT is %s: give 0 to wait for ever, or a duration above 0", s.IdleLimit)
	}
}

func (s Settings) validateCallback(add func(string, ...any)) {
	if u, err := url.Parse(s.CallbackURL); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		add("AZP_CALLBACK_URL is %q: give the scaler's address, such as http://azp-scaler.azp-scaler:8080", s.CallbackURL)
	}
	if s.JobUID == "" {
		add("AZP_JOB_UID is empty: with AZP_CALLBACK_URL it must be the UID of this pod's Job")
	}
}

func (s Settings) validateProgram(add func(string, ...any)) {
	switch s.Source {
	case SourceAuto, SourceImage, SourceDownload:
	default:
		add("AZP_AGENT_SOURCE is %q: give auto, image or download", s.Source)
	}
	if s.Source != SourceImage && s.Platform == "" {
		add("AZP_PLATFORM is empty: give the package's platform, such as linux-x64")
	}
	if s.Work == "" {
		add("AZP_WORK is empty: give the work folder, such as _work")
	}
}

type directory struct{ name, path string }

// directories lists the folders a step works with.
func (s Settings) directories(step Step) []directory {
	root := directory{"AZP_AGENT_ROOT", s.Root}
	handover := directory{"AZP_HANDOVER_DIR", s.HandoverDir}
	registration := directory{"AZP_REGISTRATION_DIR", s.RegistrationDir}
	verdict := directory{"AZP_VERDICT_DIR", s.VerdictDir}
	claimed := directory{"AZP_CLAIMED_DIR", s.ClaimedDir}
	switch step {
	case StepConfigure:
		return []directory{root, handover, registration}
	case StepRun:
		if s.Registration == agentpool.RegistrationJIT {
			return []directory{root, handover}
		}
		return []directory{root, handover, verdict, claimed}
	case StepRemove:
		return []directory{registration, claimed, verdict}
	case StepWithdraw:
		return []directory{registration, claimed, verdict}
	case StepAll, StepDownload:
		return []directory{root}
	default:
		return nil
	}
}
