package azuredevopstest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// demandGrammar is the service's own expression for a demand.
var demandGrammar = regexp.MustCompile(`^(?P<name>\S+)(\s+-(?P<op>\S+)\s+(?P<value>.*))?$`)

// The operators of a demand.
const (
	opExists    = ""
	opEquals    = "equals"
	opGTVersion = "gtVersion"

	capAgentVersion = "Agent.Version"
	capAgentName    = "Agent.Name"
)

// demand is one condition a request puts on the capabilities of its agent.
type demand struct {
	name, op, value string
}

// parseDemand reads a demand. Operators are case-sensitive, and another one
// than the two known makes the whole demand unreadable.
func parseDemand(text string) (demand, error) {
	m := demandGrammar.FindStringSubmatch(text)
	if m == nil {
		return demand{}, fmt.Errorf("demand %q: want NAME, NAME -equals VALUE or NAME -gtVersion VERSION", text)
	}
	d := demand{
		name:  m[demandGrammar.SubexpIndex("name")],
		op:    m[demandGrammar.SubexpIndex("op")],
		value: m[demandGrammar.SubexpIndex("value")],
	}
	switch d.op {
	case opExists, opEquals, opGTVersion:
		return d, nil
	default:
		return demand{}, fmt.Errorf("demand %q: unknown operator %q, want equals or gtVersion", text, d.op)
	}
}

func (d demand) String() string {
	if d.op == opExists {
		return d.name
	}
	return d.name + " -" + d.op + " " + d.value
}

// satisfiedBy reports whether capabilities with lower-case names meet the demand.
func (d demand) satisfiedBy(capabilities map[string]string) bool {
	have, ok := capabilities[strings.ToLower(d.name)]
	if !ok {
		return false
	}
	switch d.op {
	case opEquals:
		return strings.EqualFold(have, d.value)
	case opGTVersion:
		return compareVersions(have, d.value) >= 0
	default:
		return true
	}
}

// compareVersions orders two versions as the operator gtVersion does: whatever
// follows a dash is ignored, missing parts are below 0, and what is no version
// at all is below every one that is.
func compareVersions(a, b string) int {
	x, y := versionParts(a), versionParts(b)
	for i := range max(len(x), len(y)) {
		p, q := -1, -1
		if i < len(x) {
			p = x[i]
		}
		if i < len(y) {
			q = y[i]
		}
		if p != q {
			if p < q {
				return -1
			}
			return 1
		}
	}
	return 0
}

// versionParts returns the dotted numbers of a version, or none.
func versionParts(text string) []int {
	text, _, _ = strings.Cut(text, "-")
	fields := strings.Split(strings.TrimSpace(text), ".")
	parts := make([]int, len(fields))
	for i, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil || n < 0 {
			return nil
		}
		parts[i] = n
	}
	return parts
}
