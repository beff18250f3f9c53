package app

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The types below read one variable each. They never make envconfig fail: it
// stops at the first variable that does not parse, and prints the raw value.
// They remember what is wrong instead, and Validate tells it all at once.

// Duration is a time span such as 90s or 1h30m.
type Duration struct {
	time.Duration
	problem string
}

// Decode implements envconfig.Decoder.
func (d *Duration) Decode(text string) error {
	d.Duration, d.problem = 0, ""
	value, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil {
		d.problem = fmt.Sprintf("%q is no duration: want a number with a unit, such as 90s, 10m or 1h", text)
		return nil
	}
	d.Duration = value
	return nil
}

// Count is a whole number.
type Count struct {
	N       int
	problem string
}

// Decode implements envconfig.Decoder.
func (c *Count) Decode(text string) error {
	c.N, c.problem = 0, ""
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		c.problem = fmt.Sprintf("%q is no whole number", text)
		return nil
	}
	c.N = n
	return nil
}

// Switch is a yes or no.
type Switch struct {
	On      bool
	problem string
}

// Decode implements envconfig.Decoder.
func (s *Switch) Decode(text string) error {
	s.On, s.problem = false, ""
	on, err := strconv.ParseBool(strings.TrimSpace(text))
	if err != nil {
		s.problem = fmt.Sprintf("%q is neither true nor false", text)
		return nil
	}
	s.On = on
	return nil
}

// Quantity is an amount of CPU or memory as Kubernetes writes it.
type Quantity struct {
	Quantity *resource.Quantity // Nil when none is given.
	problem  string
}

// Decode implements envconfig.Decoder.
func (q *Quantity) Decode(text string) error {
	q.Quantity, q.problem = nil, ""
	parsed, err := resource.ParseQuantity(strings.TrimSpace(text))
	switch {
	case err != nil:
		q.problem = fmt.Sprintf("%q is no quantity: want one such as 500m or 2Gi", text)
	case parsed.Sign() <= 0:
		q.problem = fmt.Sprintf("%q is not above zero", text)
	default:
		q.Quantity = &parsed
	}
	return nil
}

// Level is how much is logged.
type Level struct {
	slog.Level
	problem string
}

// Decode implements envconfig.Decoder.
func (l *Level) Decode(text string) error {
	l.problem = ""
	if err := l.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		l.problem = fmt.Sprintf("%q is no level: want debug, info, warn or error", text)
	}
	return nil
}

// RoleBindings are the rights of each build, separated by commas or new lines.
type RoleBindings struct {
	List     []agentpool.RoleBinding
	problems []string
}

// Decode implements envconfig.Decoder.
func (r *RoleBindings) Decode(text string) error {
	r.List, r.problems = nil, nil
	for _, item := range items(text) {
		binding, err := agentpool.ParseRoleBinding(item)
		if err != nil {
			r.problems = append(r.problems, err.Error())
			continue
		}
		r.List = append(r.List, binding)
	}
	return nil
}

// Capabilities are "name" or "name=value", separated by commas or new lines.
type Capabilities struct {
	Pairs    map[string]string
	problems []string
}

// Decode implements envconfig.Decoder.
func (c *Capabilities) Decode(text string) error {
	c.Pairs, c.problems = map[string]string{}, nil
	for _, item := range items(text) {
		name, value, _ := strings.Cut(item, "=")
		name = strings.TrimSpace(name)
		if name == "" || strings.ContainsAny(name, " \t") {
			c.problems = append(c.problems, fmt.Sprintf("%q is no capability: want a name without blanks, or name=value, such as java=17", item))
			continue
		}
		c.Pairs[name] = strings.TrimSpace(value)
	}
	return nil
}

// Names are Kubernetes object names, separated by commas.
type Names []string

// Decode implements envconfig.Decoder.
func (n *Names) Decode(text string) error {
	*n = items(text)
	return nil
}

// items splits at commas and new lines and drops what is blank.
func items(text string) []string {
	var list []string
	for _, item := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}
