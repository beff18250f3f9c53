package worker

import "strings"

// logCommand is a command that a script gives the agent through its output:
// ##vso[area.action key=value;…]data.
type logCommand struct {
	name       string // area.action in lower case.
	properties map[string]string
	data       string
}

const commandPrefix = "##vso["

// parseCommand reads a line as a command.
func parseCommand(line string) (logCommand, bool) {
	start := strings.Index(line, commandPrefix)
	if start < 0 {
		return logCommand{}, false
	}
	head, data, found := strings.Cut(line[start+len(commandPrefix):], "]")
	if !found {
		return logCommand{}, false
	}
	name, properties, _ := strings.Cut(head, " ")
	if !strings.Contains(name, ".") {
		return logCommand{}, false
	}
	// The characters that would end a property or the command come written in others.
	unescape := strings.NewReplacer("%3B", ";", "%5D", "]", "%0D", "\r", "%0A", "\n", "%AZP25", "%")
	command := logCommand{name: strings.ToLower(name), properties: map[string]string{}, data: unescape.Replace(data)}
	for property := range strings.SplitSeq(properties, ";") {
		if key, value, found := strings.Cut(strings.TrimSpace(property), "="); found {
			command.properties[strings.ToLower(key)] = unescape.Replace(value)
		}
	}
	return command, true
}
