package structure

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/yaml"

	"github.com/azp-scaler/azp-scaler/pkg/agentclass"
	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
	"github.com/azp-scaler/azp-scaler/pkg/app"
	"github.com/azp-scaler/azp-scaler/pkg/plan"
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

	keepSections(t, "README.md", map[string]string{"configuration": configuration, "metrics": metrics})
}

// The annotations of a class are documented as they are read.
func TestREADMEOfClasses(t *testing.T) {
	var table strings.Builder
	table.WriteString("| Annotation | Without it | Example | Meaning |\n| --- | --- | --- | --- |\n")
	for _, a := range agentclass.Annotations() {
		fmt.Fprintf(&table, "| `%s` | %s | `%s` | %s |\n", a.Name, a.Default, a.Example, a.Meaning)
	}
	keepSections(t, filepath.Join("docs", "classes.md"), map[string]string{"annotations": table.String()})

	text, err := os.ReadFile(filepath.Join(repository(t), "docs", "classes.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range plan.SkipReasons() {
		if !strings.Contains(string(text), "| `"+string(reason)+"` |") {
			t.Errorf("docs/classes.md does not say what the reason %s means", reason)
		}
	}
	for _, reason := range agentpool.Reasons() {
		if !strings.Contains(string(text), "| `"+string(reason)+"` |") {
			t.Errorf("docs/classes.md does not say what the reason %s of an agent means", reason)
		}
	}
	if class := exampleClass(t, string(text)); class.Claims["JAVA_HOME"] == "" {
		t.Errorf("the example of docs/classes.md claims %v", class.Claims)
	}
	readme, err := os.ReadFile(filepath.Join(repository(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if class := exampleClass(t, string(readme)); class.Claims["java"] == "" {
		t.Errorf("the example of README.md claims %v", class.Claims)
	}
}

// exampleClass reads the first example of a class on a page.
func exampleClass(t *testing.T, page string) agentclass.Class {
	t.Helper()
	const begin = "```yaml\n"
	at := strings.Index(page, begin+"apiVersion: batch/v1\n")
	if at < 0 {
		t.Fatal("the page shows no class")
	}
	example, _, _ := strings.Cut(page[at+len(begin):], "```")
	var cronJob batchv1.CronJob
	if err := yaml.UnmarshalStrict([]byte(example), &cronJob); err != nil {
		t.Fatalf("%v in:\n%s", err, example)
	}
	cronJob.Namespace = "azp-agents"
	class, err := agentclass.Parse(&cronJob, agentclass.Defaults{GracePeriod: time.Hour})
	if err != nil {
		t.Fatalf("%v in:\n%s", err, example)
	}
	return class
}

// keepSections compares the sections of a file with what they are to be, or writes
// them.
func keepSections(t *testing.T, file string, sections map[string]string) {
	t.Helper()
	name := filepath.Join(repository(t), file)
	written, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	made := written
	for section, content := range sections {
		if made, err = replaceSection(made, section, content); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if bytes.Equal(made, written) {
		return
	}
	if !*update {
		t.Fatalf("%s differs from the code, run \"make docs\" (-file +code):\n%s", file, cmp.Diff(string(written), string(made)))
	}
	if err := os.WriteFile(name, made, 0o600); err != nil {
		t.Fatal(err)
	}
}
