// Package chart renders the Helm chart for the tests, with the helm that tools/helm pins.
package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Release and Namespace are those that the tests render for.
const (
	Release   = "azp-scaler"
	Namespace = "azp"
)

// Dir is the chart's directory, and Root that of the repository.
type Dir struct{ Root, Chart string }

// Find looks for the chart from the working directory upwards.
func Find() (Dir, error) {
	start, err := os.Getwd()
	if err != nil {
		return Dir{}, fmt.Errorf("finding the chart: %w", err)
	}
	for root := start; ; root = filepath.Dir(root) {
		dir := filepath.Join(root, "deploy", "helm", "azp-scaler")
		if _, err := os.Stat(filepath.Join(dir, "Chart.yaml")); err == nil {
			return Dir{Root: root, Chart: dir}, nil
		}
		if root == filepath.Dir(root) {
			return Dir{}, fmt.Errorf("no chart in %s or above it: run inside the repository", start)
		}
	}
}

// Tool builds a program that a module below tools pins, if go has not kept it from an earlier
// time, and says where it is.
func (d Dir) Tool(ctx context.Context, name string) (string, error) {
	command := exec.CommandContext(ctx, "go", "-C", filepath.Join(d.Root, "tools", name), "tool", "-n", name)
	// Without cgo and whatever flags the tests are run with: one build for all.
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false")
	var complaint bytes.Buffer
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("building %s: %w: %s", name, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Examples are the files with values that every part of the tests goes through, by name.
func (d Dir) Examples() (map[string]string, error) {
	const suffix = "-values.yaml"
	files, err := filepath.Glob(filepath.Join(d.Chart, "ci", "*"+suffix))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no examples of values in %s: %w", d.Chart, err)
	}
	examples := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("example: %w", err)
		}
		examples[strings.TrimSuffix(filepath.Base(file), suffix)] = string(text)
	}
	return examples, nil
}

// ErrHelm says that helm refused; the error has its words.
var ErrHelm = errors.New("helm")

// Helm runs it with values on its standard input.
func Helm(ctx context.Context, program, values string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, program, args...)
	command.Stdin = strings.NewReader(values)
	var complaint bytes.Buffer
	command.Stderr = &complaint
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("%w %v: %w: %s", ErrHelm, args, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out, nil
}

// Objects are what a chart was rendered to.
type Objects []unstructured.Unstructured

// Parse reads a stream of manifests.
func Parse(manifests []byte) (Objects, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	var objects Objects
	for {
		var object unstructured.Unstructured
		err := decoder.Decode(&object.Object)
		switch {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, fmt.Errorf("manifest %d: %w", len(objects)+1, err)
		case len(object.Object) > 0: // A comment alone is none.
			objects = append(objects, object)
		}
	}
}

// Find gives the only object of that kind, namespace and name.
func (o Objects) Find(kind, namespace, name string) (unstructured.Unstructured, bool) {
	for _, object := range o {
		if object.GetKind() == kind && object.GetNamespace() == namespace && object.GetName() == name {
			return object, true
		}
	}
	return unstructured.Unstructured{}, false
}

// Kind gives those of one kind.
func (o Objects) Kind(kind string) (found Objects) {
	for _, object := range o {
		if object.GetKind() == kind {
			found = append(found, object)
		}
	}
	return found
}

// Decode reads an object as its type, and takes no field that the type does not have.
func Decode[T any](object unstructured.Unstructured) (T, error) {
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &typed, true); err != nil {
		return typed, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return typed, nil
}
