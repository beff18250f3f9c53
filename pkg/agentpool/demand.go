package agentpool

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Operator is how a demand compares its value with a capability's.
type Operator string

// The operators of the demand grammar, in the service's own spelling.
const (
	// Exists asks for the capability, whatever its value.
	Exists Operator = ""
	// Equals asks for the value, ignoring case.
	Equals Operator = "equals"
	// AtLeast is spelled gtVersion and means "this version or a later one".
	AtLeast Operator = "gtVersion"
)

// AgentVersion is the capability that the service demands by itself. Every agent
// has it, and one that is too old updates itself, so it never rules out a class.
const AgentVersion = "Agent.Version"

// demandGrammar is the service's own: a name, then optionally a dash with an
// operator and the rest of the line as value.
var demandGrammar = regexp.MustCompile(`^(\S+)(?:\s+-(\S+)\s+(.*))?$`)

// Demand is one condition that a job request puts on the agent that runs it.
type Demand struct {
	Name  string
	Op    Operator
	Value string
}

// ParseDemand reads a demand as the service writes it, such as "npm",
// "Agent.OS -equals Linux" or "java -gtVersion 17". Quotes are literal.
func ParseDemand(text string) (Demand, error) {
	parts := demandGrammar.FindStringSubmatch(strings.TrimSpace(text))
	if parts == nil {
		return Demand{}, fmt.Errorf("demand %q does not parse: want a name, or a name followed by \"-equals VALUE\" or \"-gtVersion VALUE\"", text)
	}
	d := Demand{Name: parts[1], Op: Operator(parts[2]), Value: parts[3]}
	switch d.Op {
	case Exists, Equals, AtLeast:
		return d, nil
	default:
		return Demand{}, fmt.Errorf("demand %q: unknown operator %q: want equals or gtVersion, in this spelling", text, parts[2])
	}
}

// String gives the demand in the service's grammar.
func (d Demand) String() string {
	if d.Op == Exists {
		return d.Name
	}
	return d.Name + " -" + string(d.Op) + " " + d.Value
}

// Capabilities are what an agent offers: a value by name. Names are compared
// without regard to case, so they are held in lower case.
type Capabilities map[string]string

// NewCapabilities copies the pairs, folding the names.
func NewCapabilities(pairs map[string]string) Capabilities {
	c := make(Capabilities, len(pairs))
	// Sorted, so that two spellings of one name always leave the same value.
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		c[strings.ToLower(name)] = pairs[name]
	}
	return c
}

// Satisfies reports whether these capabilities meet one demand.
func (c Capabilities) Satisfies(d Demand) bool {
	if strings.EqualFold(d.Name, AgentVersion) {
		return true
	}
	value, ok := c[strings.ToLower(d.Name)]
	if !ok {
		return false
	}
	switch d.Op {
	case Exists:
		return true
	case Equals:
		return strings.EqualFold(value, d.Value)
	case AtLeast:
		return compareVersions(value, d.Value) >= 0
	default:
		return false
	}
}

// VariesByAgent tells of a capability whether each agent of a class has its own value of
// it, so that one agent's says nothing about the next.
func VariesByAgent(name string) bool {
	switch strings.ToLower(name) {
	case "agent.name", "agent.computername", "agent.homedirectory":
		return true
	default:
		return false
	}
}

// Missing gives the first demand that these capabilities do not meet, and
// whether there is one.
func (c Capabilities) Missing(demands []Demand) (Demand, bool) {
	for _, d := range demands {
		if !c.Satisfies(d) {
			return d, true
		}
	}
	return Demand{}, false
}

// compareVersions compares dotted numbers up to the first dash. What does not
// parse is lower than everything that does, as in the service.
func compareVersions(a, b string) int {
	return slices.Compare(versionParts(a), versionParts(b))
}

func versionParts(text string) []int {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "-")
	fields := strings.Split(text, ".")
	parts := make([]int, 0, len(fields))
	for _, field := range fields {
		n, err := strconv.Atoi(field)
		if err != nil || n < 0 {
			return nil
		}
		parts = append(parts, n)
	}
	// 1.0 and 1.0.0 are the same version.
	for len(parts) > 0 && parts[len(parts)-1] == 0 {
		parts = parts[:len(parts)-1]
	}
	return append([]int{0}, parts...)
}
