package chart_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/azp-scaler/azp-scaler/test/chart"
)

var update = flag.Bool("update", false, "write the README of the chart anew")

// buildLimit is for a first build of helm on a busy machine, limit for one run of it.
const (
	buildLimit = 12 * time.Minute
	limit      = time.Minute
)

// minimal has what every install needs.
const minimal = "azureDevOps: {url: https://dev.azure.com/contoso, pools: [linux]}\n"

// The chart and the programs, which every test uses.
var (
	dir  chart.Dir
	helm string
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
		defer cancel()
		var err error
		if dir, err = chart.Find(); err == nil {
			helm, err = dir.Tool(ctx, "helm")
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// run runs helm.
func run(t *testing.T, values string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return chart.Helm(ctx, helm, values, args...)
}

// render gives what the chart makes of values.
func render(t *testing.T, values string) chart.Objects {
	t.Helper()
	out, err := run(t, values, "template", chart.Release, dir.Chart, "--namespace", chart.Namespace, "--values", "-")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := chart.Parse(out)
	if err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	return objects
}

// find gives one object as its type.
func find[T any](t *testing.T, objects chart.Objects, kind, namespace, name string) T {
	t.Helper()
	object, found := objects.Find(kind, namespace, name)
	if !found {
		t.Fatalf("no %s %s/%s among %v", kind, namespace, name, names(objects))
	}
	return decode[T](t, object)
}

func decode[T any](t *testing.T, object unstructured.Unstructured) T {
	t.Helper()
	typed, err := chart.Decode[T](object)
	if err != nil {
		t.Fatal(err)
	}
	return typed
}

func names(objects chart.Objects) (list []string) {
	for _, object := range objects {
		list = append(list, fmt.Sprintf("%s %s/%s", object.GetKind(), object.GetNamespace(), object.GetName()))
	}
	return list
}

func examples(t *testing.T) map[string]string {
	t.Helper()
	found, err := dir.Examples()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestLint has helm look at the chart with each example of values; what it only warns of fails, too.
func TestLint(t *testing.T) {
	t.Parallel()
	for name, values := range examples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := run(t, values, "lint", dir.Chart, "--strict", "--values", "-")
			if err != nil || strings.Contains(string(out), "WARNING") || strings.Contains(string(out), "ERROR") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestEveryObjectSaysWhereItBelongs: namespace and labels are there whatever is asked for, and no two objects are one.
func TestEveryObjectSaysWhereItBelongs(t *testing.T) {
	t.Parallel()
	for name, values := range examples(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, values)
			all := names(objects)
			for i, object := range objects {
				if strings.HasSuffix(object.GetName(), "-extra") {
					continue // The user's own.
				}
				if object.GetNamespace() == "" && object.GetKind() != "Namespace" {
					t.Errorf("%s has no namespace", all[i])
				}
				for _, label := range []string{"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"} {
					if object.GetLabels()[label] == "" {
						t.Errorf("%s has no label %s", all[i], label)
					}
				}
				if slices.Contains(all[:i], all[i]) {
					t.Errorf("%s is there twice", all[i])
				}
			}
		})
	}
}
