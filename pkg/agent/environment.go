package agent

import (
	"slices"
	"strings"
)

// inputPrefix begins the variables by which the agent program takes its flags.
const inputPrefix = "VSTS_AGENT_INPUT_"

// ownPrefix begins the entrypoint's own settings.
const ownPrefix = "AZP_"

// shortestSecret guards scrubbing by value: a "token" of a few characters would
// take half of the environment with it. Real ones have 52 or more.
const shortestSecret = 8

// ownInputs are the agent's inputs that the entrypoint itself gives, or must not
// let through: REPLACE can loop for ever on an error of the service.
func ownInputs() []string {
	return []string{"TOKEN", "PASSWORD", "USERNAME", "AUTH", "URL", "POOL", "AGENT", "WORK", "REPLACE", "SSLCACERT"}
}

// buildEnvironment is the environment of the agent program, and so of every
// build: the given one without the entrypoint's settings, the hidden ones, and the
// agent's inputs, whatever their case, and without every variable whose value contains
// the secret under another name. It reports the names of those. The locale is made neutral.
func buildEnvironment(environ, hidden []string, secret string) (kept, leaked []string) {
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		upper := strings.ToUpper(name)
		if strings.HasPrefix(upper, ownPrefix) || strings.HasPrefix(upper, inputPrefix) || slices.Contains(hidden, upper) {
			continue
		}
		if len(secret) >= shortestSecret && strings.Contains(value, secret) {
			leaked = append(leaked, name)
			continue
		}
		kept = append(kept, entry)
	}
	return neutralLocale(kept), leaked
}

// configureEnvironment is the environment of config.sh: the build's, the inputs
// of the agent that someone set on purpose (a proxy, say), and the token, which
// the agent takes out of its environment before it does anything else.
func configureEnvironment(environ, hidden []string, token, caFile string) []string {
	env, _ := buildEnvironment(environ, hidden, token)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		input, found := strings.CutPrefix(strings.ToUpper(name), inputPrefix)
		if found && !slices.Contains(ownInputs(), input) && (len(token) < shortestSecret || !strings.Contains(value, token)) {
			env = append(env, entry)
		}
	}
	if caFile != "" {
		env = append(env, inputPrefix+"SSLCACERT="+caFile)
	}
	return append(env, inputPrefix+"TOKEN="+token)
}

// neutralLocale makes the agent program speak English, for its lines are read:
// LC_ALL, which would overrule everything, becomes LANG, and LC_MESSAGES is set. Other
// parts of the locale stay as they are.
func neutralLocale(env []string) []string {
	all, hasAll := lookup(env, "LC_ALL")
	env = without(env, "LC_ALL", "LC_MESSAGES", "LANGUAGE")
	if hasAll && all != "" {
		env = append(without(env, "LANG"), "LANG="+all)
	}
	return append(env, "LC_MESSAGES=C.UTF-8")
}

// lookup gives the value that a program sees for a name: the last one.
func lookup(env []string, name string) (string, bool) {
	for _, entry := range slices.Backward(env) {
		if key, value, found := strings.Cut(entry, "="); found && key == name {
			return value, true
		}
	}
	return "", false
}

// without gives a copy of the environment without the names.
func without(env []string, names ...string) []string {
	kept := make([]string, 0, len(env)+2)
	for _, entry := range env {
		if name, _, _ := strings.Cut(entry, "="); !slices.Contains(names, name) {
			kept = append(kept, entry)
		}
	}
	return kept
}
