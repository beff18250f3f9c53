package worker

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/console"
	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/wire"
)

// variables are a job's variables; names count without case.
type variables struct {
	masker *console.Masker
	values map[string]variable // By name in lower case.
}

type variable struct {
	name, value string
	secret      bool
}

// folders lists the variables whose folders a job finds made.
func folders() []string {
	return []string{
		"Agent.TempDirectory", "Agent.ToolsDirectory", "Build.SourcesDirectory", "Build.ArtifactStagingDirectory",
		"Build.BinariesDirectory", "Common.TestResultsDirectory",
	}
}

// newVariables joins what the job's message says with what the agent adds, which
// counts more.
func newVariables(job wire.Job, agent Agent, masker *console.Masker) *variables {
	v := &variables{masker: masker, values: map[string]variable{}}
	for name, given := range job.Variables {
		v.set(name, given.Value, given.IsSecret)
	}
	work := agent.Work
	if !filepath.IsAbs(work) {
		work = filepath.Join(agent.Root, work)
	}
	build := filepath.Join(work, "1")
	architecture := "X64"
	if strings.HasSuffix(agent.Platform, "arm64") {
		architecture = "ARM64"
	}
	for name, value := range map[string]string{
		"Agent.AcceptTeeEula":            "True",
		"Agent.BuildDirectory":           build,
		"Agent.HomeDirectory":            agent.Root,
		"Agent.Id":                       strconv.FormatInt(agent.ID, 10),
		"Agent.JobName":                  job.JobDisplayName,
		"Agent.JobStatus":                "Succeeded",
		"Agent.MachineName":              agent.Host,
		"Agent.Name":                     agent.Name,
		"Agent.OS":                       "Linux",
		"Agent.OSArchitecture":           architecture,
		"Agent.RootDirectory":            work,
		"Agent.TempDirectory":            filepath.Join(work, "_temp"),
		"Agent.ToolsDirectory":           filepath.Join(work, "_tool"),
		"Agent.Version":                  agent.Version,
		"Agent.WorkFolder":               work,
		"Build.ArtifactStagingDirectory": filepath.Join(build, "a"),
		"Build.BinariesDirectory":        filepath.Join(build, "b"),
		"Build.Repository.LocalPath":     filepath.Join(build, "s"),
		"Build.SourcesDirectory":         filepath.Join(build, "s"),
		"Build.StagingDirectory":         filepath.Join(build, "a"),
		"Common.TestResultsDirectory":    filepath.Join(build, "TestResults"),
		"Pipeline.Workspace":             build,
		"System.ArtifactsDirectory":      filepath.Join(build, "a"),
		"System.DefaultWorkingDirectory": filepath.Join(build, "s"),
		"System.JobDisplayName":          job.JobDisplayName,
		"System.JobId":                   job.JobID,
		"System.JobName":                 job.JobName,
		"System.PlanId":                  job.Plan.ID,
		"System.TeamProjectId":           job.Plan.ScopeID,
		"System.TimelineId":              job.Timeline.ID,
	} {
		v.set(name, value, false)
	}
	for name, value := range map[string]string{
		"Build.BuildId": strconv.FormatInt(job.RequestID, 10), "System.HostType": strings.ToLower(job.Plan.Type),
		"System.TeamFoundationCollectionUri": strings.TrimRight(agent.Server, "/") + "/", "System.Culture": "en-US",
	} {
		if v.get(name) == "" {
			v.set(name, value, false)
		}
	}
	return v
}

func (v *variables) set(name, value string, secret bool) {
	key := strings.ToLower(name)
	if before, ok := v.values[key]; ok {
		// Once a secret, always a secret.
		secret = secret || before.secret
	}
	if secret {
		v.masker.Add(value)
	}
	v.values[key] = variable{name: name, value: value, secret: secret}
}

func (v *variables) get(name string) string { return v.values[strings.ToLower(name)].value }

var macro = regexp.MustCompile(`\$\(([^()\s]+)\)`)

// expand puts the values of variables in the place of $(name); unknown ones stay.
func (v *variables) expand(text string) string {
	return macro.ReplaceAllStringFunc(text, func(found string) string {
		if known, ok := v.values[strings.ToLower(found[2:len(found)-1])]; ok {
			return known.value
		}
		return found
	})
}

// environment gives what a step finds in its environment: what the worker inherited,
// the variables that are no secrets, and the step's own.
func (v *variables) environment(inherited, own map[string]string) []string {
	env := maps.Clone(inherited)
	for _, known := range v.values {
		if !known.secret {
			env[environmentName(known.name)] = known.value
		}
	}
	env["TF_BUILD"] = "True"
	for name, value := range own {
		env[name] = v.expand(value)
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}

// environmentName writes a variable's name as environments have it.
func environmentName(name string) string {
	return strings.ToUpper(strings.NewReplacer(".", "_", " ", "_").Replace(name))
}
