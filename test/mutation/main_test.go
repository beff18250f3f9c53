package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDefectsCanBePlanted holds the list to the code as it is: a defect that does not apply
// any more would be one that nobody plants.
func TestDefectsCanBePlanted(t *testing.T) {
	const least = 30
	names := map[string]bool{}
	for _, d := range defects() {
		if names[d.name] {
			t.Errorf("%s: two defects have this name", d.name)
		}
		names[d.name] = true
		content, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(d.file)))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := d.apply(content); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		if d.right == d.wrong {
			t.Errorf("%s changes nothing", d.name)
		}
		for _, pkg := range d.tests {
			if info, err := os.Stat(filepath.Join("..", "..", filepath.FromSlash(pkg))); err != nil || !info.IsDir() {
				t.Errorf("%s: there is no package %s", d.name, pkg)
			}
		}
		if len(d.tests) == 0 {
			t.Errorf("%s: no tests are to notice it", d.name)
		}
	}
	if len(names) < least {
		t.Errorf("%d defects, want at least %d", len(names), least)
	}
}
