package listener

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// inputPrefix starts the names of variables that stand for flags.
const inputPrefix = "VSTS_AGENT_INPUT_"

// Commands.
const (
	commandConfigure = "configure"
	commandRemove    = "remove"
	commandRun       = "run"
)

// Flags, in the lower case in which they are looked up.
const (
	flagUnattended  = "unattended"
	flagEula        = "acceptteeeula"
	flagReplace     = "replace"
	flagOnce        = "once"
	flagVersion     = "version"
	flagCommit      = "commit"
	flagHelp        = "help"
	flagSkipVerify  = "sslskipcertvalidation"
	flagURL         = "url"
	flagAuth        = "auth"
	flagToken       = "token"
	flagPool        = "pool"
	flagAgent       = "agent"
	flagWork        = "work"
	flagCACert      = "sslcacert"
	flagProxy       = "proxyurl"
	flagProxyUser   = "proxyusername"
	flagProxySecret = "proxypassword"
	flagStartup     = "startuptype"
)

func switches() []string {
	return []string{flagUnattended, flagEula, flagReplace, flagOnce, flagVersion, flagCommit, flagHelp, flagSkipVerify, "disableloguploads", "runasservice"}
}

func valued() []string {
	return []string{flagURL, flagAuth, flagToken, flagPool, flagAgent, flagWork, flagCACert, flagProxy, flagProxyUser, flagProxySecret, "username", "password", flagStartup}
}

// command is a parsed command line together with the inputs of the environment.
type command struct {
	name   string
	values map[string]string // By flag; a switch that is on has "true".
}

// parse reads the arguments and takes the inputs out of env, which is changed: what
// the agent starts must not inherit them. Arguments count over the environment.
func parse(args []string, env map[string]string) (command, error) {
	c := command{values: map[string]string{}}
	for name := range maps.Clone(env) {
		if len(name) > len(inputPrefix) && strings.EqualFold(name[:len(inputPrefix)], inputPrefix) {
			if value := env[name]; value != "" {
				c.values[strings.ToLower(name[len(inputPrefix):])] = value
			}
			delete(env, name)
		}
	}
	var unknown []string
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "--")
		lower := strings.ToLower(name)
		switch {
		case isFlag && slices.Contains(switches(), lower):
			c.values[lower] = "true"
		case isFlag && slices.Contains(valued(), lower):
			if i+1 >= len(args) || strings.HasPrefix(args[i+1], "--") {
				return c, fmt.Errorf("command-line argument --%s has no value", name)
			}
			i++
			c.values[lower] = args[i]
		case !isFlag && c.name == "" && slices.Contains([]string{commandConfigure, commandRemove, commandRun}, args[i]):
			c.name = args[i]
		case !isFlag && args[i] == commandRemove && c.name == commandConfigure:
			c.name = commandRemove // As config.sh remove comes in.
		default:
			unknown = append(unknown, args[i])
		}
	}
	if len(unknown) > 0 {
		return c, fmt.Errorf("unrecognized command-line input arguments: '%s'. For usage refer to ./config.sh --help", strings.Join(unknown, ", "))
	}
	return c, nil
}

// on tells whether a switch is on.
func (c command) on(flag string) bool {
	value := strings.ToLower(c.values[flag])
	return value == "true" || value == "1" || value == "y" || value == "yes"
}

// need gives a flag's value; without a terminal there is nobody to ask for one
// that is missing.
func (c command) need(flag string) (string, error) {
	value := strings.TrimSpace(c.values[flag])
	if value == "" {
		return "", invalid(flag)
	}
	return value, nil
}

func (c command) orElse(flag, otherwise string) string {
	if value := strings.TrimSpace(c.values[flag]); value != "" {
		return value
	}
	return otherwise
}

func invalid(flag string) error {
	return fmt.Errorf("invalid configuration provided for %s, terminating unattended configuration", flag)
}
