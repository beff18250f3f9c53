package structure

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/azp-scaler/azp-scaler/pkg/app"
)

var update = flag.Bool("update", false, "write the tables of README.md anew")

// The tables are made from the code, so that what the README says of a setting or a metric is what it does.
func TestREADMETables(t *testing.T) {
	configuration, err := configurationTable(reflect.TypeFor[app.Config]())
	if err != nil {
		t.Fatal(err)
	}
	registered := newDescribed()
	app.NewMetrics(registered)
	metrics, err := registered.table()
	if err != nil {
		t.Fatal(err)
	}

	name := filepath.Join(repository(t), "README.md")
	written, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	made := written
	for section, content := range map[string]string{"configuration": configuration, "metrics": metrics} {
		if made, err = replaceSection(made, section, content); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if bytes.Equal(made, written) {
		return
	}
	if !*update {
		t.Fatalf("README.md differs from the code, run \"make docs\" (-README +code):\n%s", cmp.Diff(string(written), string(made)))
	}
	if err := os.WriteFile(name, made, 0o600); err != nil {
		t.Fatal(err)
	}
}
