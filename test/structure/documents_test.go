package structure

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence    = regexp.MustCompile("(?ms)^```.*?^```\\s*$")
	code     = regexp.MustCompile("`[^`\n]*`")
	markup   = regexp.MustCompile("[^a-z0-9 _-]")
	heading  = regexp.MustCompile(`(?m)^#{1,6} +(.+?)\s*$`)
	makeCall = regexp.MustCompile("(?m)(?:`|^)(?:[A-Z_]+=[^\\s`]+ )*make ([a-z][a-z0-9-]*)")
	target   = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
)

// documentViolations are the links in the Markdown files of root that lead nowhere inside the repository, to a file or
// a heading, and the targets that make does not have.
func documentViolations(root fs.FS) ([]string, error) {
	makefile, err := fs.ReadFile(root, "Makefile")
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, match := range target.FindAllSubmatch(makefile, -1) {
		targets = append(targets, string(match[1]))
	}
	var violations []string
	err = walk(root, func(name string) error {
		if path.Ext(name) != ".md" {
			return nil
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		text := string(content)
		for _, match := range makeCall.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(targets, match[1]) {
				violations = append(violations, fmt.Sprintf("%s: make has no target %q", name, match[1]))
			}
		}
		prose := code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, match := range link.FindAllStringSubmatch(prose, -1) {
			if why := broken(root, name, match[1]); why != "" {
				violations = append(violations, fmt.Sprintf("%s: link %s: %s", name, match[1], why))
			}
		}
		return nil
	})
	slices.Sort(violations)
	return violations, err
}

// broken says why a link in the document name leads nowhere, or nothing when it leads somewhere or out of the
// repository.
func broken(root fs.FS, name, to string) string {
	if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
		return ""
	}
	file, anchor, _ := strings.Cut(to, "#")
	if file == "" {
		file = name
	} else {
		file = path.Join(path.Dir(name), file)
	}
	info, err := fs.Stat(root, file)
	if err != nil {
		return "no such file"
	}
	if anchor == "" {
		return ""
	}
	if info.IsDir() {
		return "a directory has no headings"
	}
	content, err := fs.ReadFile(root, file)
	if err != nil {
		return err.Error()
	}
	for _, match := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(content), ""), -1) {
		if slug(match[1]) == anchor {
			return ""
		}
	}
	return "no such heading"
}

// slug is the anchor GitHub gives a heading: lower case, punctuation dropped, spaces to dashes.
func slug(heading string) string {
	return strings.ReplaceAll(markup.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	violations, err := documentViolations(os.DirFS(repository(t)))
	if err != nil {
		t.Fatal(err)
	}
	report(t, violations)
}

func TestDocumentViolations(t *testing.T) {
	t.Parallel()
	violations, err := documentViolations(fstest.MapFS{
		"Makefile": {Data: []byte("test: build ## Test.\n\tgo test ./...\n")},
		"README.md": {Data: []byte("# One thing, `two`\n[a](docs/a.md) [b](docs/b.md) [c](#one-thing-two) [d](#three) [e](docs/a.md#part)\n" +
			"[f](https://example.org/x) [g](docs/a.md#whole) `[h](code)`\n```\n[i](fenced)\nmake test\nDEMO=1 make demo\n```\nUse `make test` or `make tset`.\n")},
		"docs/a.md":           {Data: []byte("## Whole\n[back](../README.md) [up](b.md)\n```\n# part\n```\n")},
		"node_modules/x/y.md": {Data: []byte("[gone](gone.md)")},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"README.md: link #three: no such heading",
		"README.md: link docs/a.md#part: no such heading",
		"README.md: link docs/b.md: no such file",
		`README.md: make has no target "demo"`,
		`README.md: make has no target "tset"`,
		"docs/a.md: link b.md: no such file",
	}
	if diff := cmp.Diff(want, violations); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
}
