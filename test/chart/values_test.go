package chart_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// value is one value of the chart that users set: a leaf, or an object that is theirs to fill.
type value struct{ key, fallback, meaning string }

// documented reads values.yaml with its comments. A comment that begins with two dashes explains the key below it, and
// whatever that holds.
func documented(t *testing.T) []value {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir.Chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var list []value
	var walk func(prefix string, node *yaml.Node)
	walk = func(prefix string, node *yaml.Node) {
		for i := 0; i+1 < len(node.Content); i += 2 {
			key, content := node.Content[i], node.Content[i+1]
			name := strings.TrimPrefix(prefix+"."+key.Value, ".")
			meaning, explained := explanation(key.HeadComment)
			switch {
			case explained:
				list = append(list, value{name, inOneLine(t, content), meaning})
			case content.Kind == yaml.MappingNode && len(content.Content) > 0:
				walk(name, content)
			default:
				t.Errorf("values.yaml does not say what %s is for: want a comment that begins with \"# -- \" above it", name)
			}
		}
	}
	walk("", document.Content[0])
	return list
}

// explanation is what a comment says after its two dashes.
func explanation(comment string) (string, bool) {
	_, text, found := strings.Cut("\n"+comment, "\n# -- ")
	var words []string
	for line := range strings.Lines(text) {
		words = append(words, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#")))
	}
	return strings.Join(words, " "), found
}

// inOneLine shows a default as JSON.
func inOneLine(t *testing.T, node *yaml.Node) string {
	t.Helper()
	var content any
	if err := node.Decode(&content); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestREADME keeps the table of the chart's README equal to the comments of values.yaml.
func TestREADME(t *testing.T) {
	t.Parallel()
	const begin, end = "<!-- values: begin, written by make docs -->\n", "<!-- values: end -->\n"
	file := filepath.Join(dir.Chart, "README.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has no lines %q and %q", file, begin, end)
	}
	var table strings.Builder
	table.WriteString("| Key | Default | Meaning |\n| --- | --- | --- |\n")
	for _, v := range documented(t) {
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.key, v.fallback, v.meaning)
	}
	want := before + begin + table.String() + end + after
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil { //nolint:gosec // A file of the repository.
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), want); diff != "" {
		t.Errorf("%s differs from values.yaml, run \"make docs\" (-file +values):\n%s", file, diff)
	}
}

// schema is what a test wants to know of a part of values.schema.json.
type schema struct {
	Reference   string             `json:"$ref"`
	Properties  map[string]*schema `json:"properties"`
	Additional  any                `json:"additionalProperties"`
	Definitions map[string]*schema `json:"definitions"`
}

func readSchema(t *testing.T) *schema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir.Chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var whole schema
	if err := json.Unmarshal(text, &whole); err != nil {
		t.Fatal(err)
	}
	return &whole
}

// TestSchemaHasExactlyTheValues: no value that the schema does not check, none in the schema that the chart does not
// have, and no object with keys of our own that takes others.
func TestSchemaHasExactlyTheValues(t *testing.T) {
	t.Parallel()
	whole := readSchema(t)
	values := map[string]bool{}
	for _, v := range documented(t) {
		values[v.key] = true
	}
	seen := map[string]bool{}
	var walk func(prefix string, part *schema)
	walk = func(prefix string, part *schema) {
		if name, is := strings.CutPrefix(part.Reference, "#/definitions/"); is {
			part = whole.Definitions[name]
		}
		if part == nil {
			t.Fatalf("%s refers to a definition that is not there", prefix)
		}
		if values[prefix] {
			seen[prefix] = true
			return // What is in it is explained with it.
		}
		if len(part.Properties) == 0 {
			if prefix != "global" { // Helm's own: what a parent chart shares.
				t.Errorf("the schema has %s, which is no value of the chart", prefix)
			}
			return
		}
		if part.Additional != false {
			t.Errorf("%s takes keys that nobody knows: set additionalProperties to false", prefix)
		}
		for name, property := range part.Properties {
			walk(strings.TrimPrefix(prefix+"."+name, "."), property)
		}
	}
	walk("", whole)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !seen[key] {
			t.Errorf("values.yaml has %s, which the schema does not know", key)
		}
	}
	if class := whole.Definitions["class"]; class.Additional != false {
		t.Error("a class takes keys that nobody knows")
	}
}

// TestREADMENamesEveryKeyOfAClass, which has no default that could be explained in values.yaml.
func TestREADMENamesEveryKeyOfAClass(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(dir.Chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## Classes of agent\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, key := range slices.Sorted(maps.Keys(readSchema(t).Definitions["class"].Properties)) {
		if !strings.Contains(section, "`"+key+"`") && !strings.Contains(section, "`"+key+": ") {
			t.Errorf("the chart's README does not name %s of a class", key)
		}
	}
}
