package structure

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the parsed source of one Go module, nested modules left out.
type module struct {
	name  string
	files []file
}

// file is one Go file of a module.
type file struct {
	path      string // From the module's root, with slashes.
	dir       string // The directory of path; also the package's path inside the module.
	lines     int
	test      bool // Named _test.go.
	generated bool // Carries the standard "Code generated" line.
	fset      *token.FileSet
	syntax    *ast.File
}

var moduleLine = regexp.MustCompile(`(?m)^module\s+(\S+)\s*$`)

// load parses every Go file of the module at root.
func load(root fs.FS) (module, error) {
	mod, err := fs.ReadFile(root, "go.mod")
	if err != nil {
		return module{}, fmt.Errorf("not the root of a module: %w", err)
	}
	match := moduleLine.FindSubmatch(mod)
	if match == nil {
		return module{}, errors.New("go.mod names no module")
	}
	m := module{name: string(match[1])}
	err = walk(root, func(name string) error {
		if path.Ext(name) != ".go" {
			return nil
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		syntax, err := parser.ParseFile(fset, name, content, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		m.files = append(m.files, file{
			path:      name,
			dir:       path.Dir(name),
			lines:     bytes.Count(content, []byte("\n")),
			test:      strings.HasSuffix(name, "_test.go"),
			generated: ast.IsGenerated(syntax),
			fset:      fset,
			syntax:    syntax,
		})
		return nil
	})
	return m, err
}

// walk calls visit for every file of the repository at root that a person wrote: hidden directories, test data,
// build output, Node modules and nested Go modules are left out. What vanishes underway, as build output of a test
// running at the same time does, is no error.
func walk(root fs.FS, visit func(name string) error) error {
	return fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != ".":
			return nil
		case err != nil:
			return err
		case !entry.IsDir():
			return visit(name)
		case name == ".":
			return nil
		}
		base := path.Base(name)
		if strings.HasPrefix(base, ".") || slices.Contains([]string{"testdata", "node_modules", "out"}, base) {
			return fs.SkipDir
		}
		if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
			return fs.SkipDir
		}
		return nil
	})
}

// repository is the directory of this repository.
func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// source is this repository's module, parsed.
func source(t *testing.T) module {
	t.Helper()
	m, err := load(os.DirFS(repository(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.files) == 0 {
		t.Fatal("no Go file found: the rules would hold for nothing")
	}
	return m
}

// imports are the paths f imports, by the name f knows each one under.
func (f file) imports() map[string]string {
	imports := make(map[string]string, len(f.syntax.Imports))
	for _, spec := range f.syntax.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // The parser has accepted it, so it is a string.
		}
		name := path.Base(target)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "_" || name == "." {
			name += target // Several of these do not collide.
		}
		imports[name] = target
	}
	return imports
}

// inside says whether dir is parent or lies below it.
func inside(dir, parent string) bool {
	return dir == parent || strings.HasPrefix(dir, parent+"/")
}

// report fails t once for every violation, in a stable order.
func report(t *testing.T, violations []string) {
	t.Helper()
	slices.Sort(violations)
	for _, violation := range violations {
		t.Error(violation)
	}
}
