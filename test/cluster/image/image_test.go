package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFullRef(t *testing.T) {
	for ref, want := range map[string]string{
		"agent": "docker.io/library/agent:latest", "agent:dev": "docker.io/library/agent:dev",
		"team/agent:dev": "docker.io/team/agent:dev", "localhost/agent:1": "localhost/agent:1",
		"registry.example/agent": "registry.example/agent:latest", "host:5000/a/b:1": "host:5000/a/b:1",
	} {
		if got, err := FullRef(ref); err != nil || got != want {
			t.Errorf("FullRef(%q) = %q, %v; want %q", ref, got, err, want)
		}
	}
	for _, ref := range []string{"", "a b", "a@sha256:0"} {
		if got, err := FullRef(ref); err == nil {
			t.Errorf("FullRef(%q) = %q, want an error", ref, got)
		}
	}
}

// entry is a file in a layer, as far as tests look.
type entry struct {
	Kind     byte
	Mode     int64
	UID, GID int
	Link     string
	Content  string
}

func TestImageHoldsWhatWasAskedFor(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	must(t, os.MkdirAll(filepath.Join(tree, "sub"), 0o750))
	must(t, os.WriteFile(filepath.Join(tree, "sub", "file"), []byte("deep"), 0o640))
	must(t, os.Symlink("sub/file", filepath.Join(tree, "link")))
	program := filepath.Join(dir, "program")
	must(t, os.WriteFile(program, []byte("program"), 0o700))
	base := filepath.Join(dir, "base.tar")
	must(t, os.WriteFile(base, tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "base", Mode: 0o644, Size: 4}, "base"), 0o600))
	archive := filepath.Join(dir, "agent.tar.gz")
	must(t, os.WriteFile(archive, zipped(t, tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "./bin/run", Mode: 0o755, Size: 3}, "run",
		&tar.Header{Typeflag: tar.TypeLink, Name: "bin/again", Linkname: "./bin/run"}, "")), 0o600))
	target := filepath.Join(dir, "image.tar")
	spec := Spec{
		Ref: "agent:dev", Base: base, User: "1000:1000", WorkingDir: "/home", Env: []string{"A=b"}, Entrypoint: []string{"/program"}, Cmd: []string{"run"},
		Files: []File{
			{Path: "/program", Source: program, Mode: 0o755},
			{Path: "/etc/passwd", Content: []byte("agent")},
			{Path: "/empty", Content: []byte{}},
			{Path: "/home", Dir: true, UID: 1000, GID: 1001},
			{Path: "/tree", Source: tree, UID: 5},
			{Path: "/azp", Archive: archive, UID: 1000, GID: 1000},
		},
	}
	must(t, Write(t.Context(), target, spec))
	index, blobs := readImage(t, target)
	if index != "docker.io/library/agent:dev" {
		t.Errorf("name %q", index)
	}
	manifest, config := documents(t, blobs)
	if len(config.History) != 2 {
		t.Errorf("history %v, want an entry for each layer", config.History)
	}
	if len(manifest.Layers) != 2 || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Fatalf("layers %v, diff ids %v", manifest.Layers, config.RootFS.DiffIDs)
	}
	want := processConfig{
		User: "1000:1000", WorkingDir: "/home", Entrypoint: []string{"/program"}, Cmd: []string{"run"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b"},
	}
	if diff := cmp.Diff(want, config.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	files := map[string]entry{
		"program":       {Kind: tar.TypeReg, Mode: 0o755, Content: "program"},
		"etc/passwd":    {Kind: tar.TypeReg, Mode: 0o644, Content: "agent"},
		"empty":         {Kind: tar.TypeReg, Mode: 0o644},
		"home/":         {Kind: tar.TypeDir, Mode: 0o755, UID: 1000, GID: 1001},
		"tree/":         {Kind: tar.TypeDir, Mode: 0o750, UID: 5},
		"tree/sub/":     {Kind: tar.TypeDir, Mode: 0o750, UID: 5},
		"tree/sub/file": {Kind: tar.TypeReg, Mode: 0o640, UID: 5, Content: "deep"},
		"tree/link":     {Kind: tar.TypeSymlink, Mode: 0o777, UID: 5, Link: "sub/file"},
		"azp/bin/run":   {Kind: tar.TypeReg, Mode: 0o755, UID: 1000, GID: 1000, Content: "run"},
		"azp/bin/again": {Kind: tar.TypeLink, UID: 1000, GID: 1000, Link: "azp/bin/run"},
	}
	if diff := cmp.Diff(files, entries(t, blobs[manifest.Layers[1].Digest])); diff != "" {
		t.Errorf("second layer (-want +got):\n%s", diff)
	}
	again := filepath.Join(dir, "again.tar")
	must(t, Write(t.Context(), again, spec))
	first, err := os.ReadFile(target)
	must(t, err)
	second, err := os.ReadFile(again)
	must(t, err)
	if !bytes.Equal(first, second) {
		t.Error("the same image made twice is not the same")
	}
}

func TestBadImagesAreRefused(t *testing.T) {
	dir := t.TempDir()
	notTar := filepath.Join(dir, "not.tar")
	must(t, os.WriteFile(notTar, bytes.Repeat([]byte("x"), 2048), 0o600))
	device := filepath.Join(dir, "device.tar")
	must(t, os.WriteFile(device, tarOf(t, &tar.Header{Typeflag: tar.TypeChar, Name: "null"}, ""), 0o600))
	target := filepath.Join(dir, "image.tar")
	for name, test := range map[string]struct {
		spec Spec
		want string
	}{
		"no name":          {Spec{}, "image reference"},
		"relative path":    {Spec{Ref: "a", Files: []File{{Path: "x"}}}, `"x"`},
		"two sources":      {Spec{Ref: "a", Files: []File{{Path: "/x", Source: "a", Dir: true}}}, "not several"},
		"absent file":      {Spec{Ref: "a", Files: []File{{Path: "/x", Source: dir + "/absent"}}}, "absent"},
		"absent base":      {Spec{Ref: "a", Base: dir + "/absent"}, "absent"},
		"absent archive":   {Spec{Ref: "a", Files: []File{{Path: "/x", Archive: dir + "/absent"}}}, "absent"},
		"broken archive":   {Spec{Ref: "a", Files: []File{{Path: "/x", Archive: notTar}}}, "not.tar"},
		"device in it":     {Spec{Ref: "a", Files: []File{{Path: "/x", Archive: device}}}, "null"},
		"neither of kinds": {Spec{Ref: "a", Files: []File{{Path: "/x", Source: "/dev/null"}}}, "/dev/null"},
	} {
		err := Write(t.Context(), target, test.spec)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ended, target, Spec{Ref: "a", Base: notTar}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	must(t, err)
	if _, err := os.Stat(target); err == nil || len(left) > 0 {
		t.Errorf("failures left files: %v, target %v", left, err)
	}
}

func TestMachineRelease(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=trixie\n":    "trixie",
		"VERSION_CODENAME=\"noble\"\nID=ubuntu\n": "noble",
		"ID=fedora\nVERSION_ID=42\n":              fallbackRelease,
		"ID=debian\n":                             fallbackRelease,
	} {
		file := filepath.Join(t.TempDir(), "os-release")
		must(t, os.WriteFile(file, []byte(text), 0o600))
		if got, err := machineRelease(file); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	if _, err := machineRelease("/nonexistent/os-release"); err == nil {
		t.Error("no file, no error")
	}
}

// TestBaseIsMadeOnce plays the bootstrap tool by a script.
func TestBaseIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"$@\" >>" + dir + "/calls\nfor out in \"$@\"; do :; done\n[ ! -e " + dir + "/broken ] || { echo no mirror >&2; exit 25; }\necho base >\"$out\"\n"
	must(t, os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte(script), 0o755))
	t.Setenv("PATH", dir)
	debian := Debian{Cache: filepath.Join(dir, "cache"), Release: "bookworm", Packages: []string{"b", "a", "b"}}
	must(t, os.WriteFile(filepath.Join(dir, "broken"), nil, 0o600))
	if _, err := debian.Base(t.Context()); err == nil || !strings.Contains(err.Error(), "no mirror") {
		t.Fatalf("error %v, want what the tool said", err)
	}
	must(t, os.Remove(filepath.Join(dir, "broken")))
	first, err := debian.Base(t.Context())
	must(t, err)
	second, err := Debian{Cache: debian.Cache, Release: "bookworm", Packages: []string{"a", "b"}}.Base(t.Context())
	must(t, err)
	other, err := Debian{Cache: debian.Cache, Release: "bookworm", Packages: []string{"a"}}.Base(t.Context())
	must(t, err)
	if first != second || first == other {
		t.Errorf("bases %s, %s and %s: want the first two the same", first, second, other)
	}
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	must(t, err)
	lines := strings.Split(strings.TrimSpace(string(calls)), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], "--include=a --include=b ") {
		t.Errorf("calls %q, want one that failed and one for each base", lines)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tarOf makes a tar file of headers and contents by turns.
func tarOf(t *testing.T, parts ...any) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for pair := range slices.Chunk(parts, 2) {
		header, _ := pair[0].(*tar.Header)
		text, _ := pair[1].(string)
		must(t, w.WriteHeader(header))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return out.Bytes()
}

func zipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(content)
	must(t, err)
	must(t, w.Close())
	return out.Bytes()
}

type manifestDocument struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
}

// readImage gives the image's name and its blobs, whose digests it checks. The
// manifest is the blob "manifest".
func readImage(t *testing.T, file string) (name string, blobs map[string][]byte) {
	t.Helper()
	in, err := os.Open(file)
	must(t, err)
	defer func() { _ = in.Close() }()
	blobs = map[string][]byte{}
	var index struct{ Manifests []descriptor }
	for r := tar.NewReader(in); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		if digest, found := strings.CutPrefix(header.Name, "blobs/sha256/"); found {
			sum := sha256.Sum256(content)
			if hex.EncodeToString(sum[:]) != digest {
				t.Errorf("blob %s has another digest", digest)
			}
			blobs["sha256:"+digest] = content
		}
		if header.Name == "index.json" {
			must(t, json.Unmarshal(content, &index))
		}
	}
	if len(index.Manifests) != 1 {
		t.Fatalf("%d manifests, want 1", len(index.Manifests))
	}
	blobs["manifest"] = blobs[index.Manifests[0].Digest]
	return index.Manifests[0].Annotations[annotationName], blobs
}

func documents(t *testing.T, blobs map[string][]byte) (manifest manifestDocument, config imageConfig) {
	t.Helper()
	must(t, json.Unmarshal(blobs["manifest"], &manifest))
	must(t, json.Unmarshal(blobs[manifest.Config.Digest], &config))
	return manifest, config
}

func entries(t *testing.T, layer []byte) map[string]entry {
	t.Helper()
	found := map[string]entry{}
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		found[header.Name] = entry{header.Typeflag, header.Mode, header.Uid, header.Gid, header.Linkname, string(content)}
	}
}
