package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/test/fakeagent/internal/archive"
)

func TestPackAndUnpack(t *testing.T) {
	t.Parallel()
	files := []archive.File{
		{Name: "bin/deep/program", Mode: 0o755, Content: []byte("run")},
		{Name: "note", Mode: 0o644},
	}
	var first, second bytes.Buffer
	for _, packed := range []*bytes.Buffer{&first, &second} {
		if err := archive.Pack(packed, files); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files were packed in two ways")
	}
	dir := t.TempDir()
	if err := archive.Unpack(&first, dir); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(dir, file.Name))
		if err != nil || !bytes.Equal(content, file.Content) {
			t.Errorf("%s is %q, %v", file.Name, content, err)
		}
		if info, err := os.Stat(filepath.Join(dir, file.Name)); err != nil || info.Mode().Perm() != file.Mode {
			t.Errorf("%s is %v, %v", file.Name, info.Mode(), err)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	tarball := func(headers ...tar.Header) string {
		var packed bytes.Buffer
		compressed := gzip.NewWriter(&packed)
		writer := tar.NewWriter(compressed)
		for _, header := range headers {
			if err := writer.WriteHeader(&header); err != nil {
				t.Fatal(err)
			}
		}
		writer.Close()
		compressed.Close()
		return packed.String()
	}
	for name, c := range map[string]struct{ content, says string }{
		"no tarball":    {"hello", "not a compressed tarball"},
		"cut off":       {tarball(tar.Header{Typeflag: tar.TypeReg, Name: "a"})[:20], "unpack"},
		"escapes":       {tarball(tar.Header{Typeflag: tar.TypeReg, Name: "../evil"}), "leads out"},
		"absolute":      {tarball(tar.Header{Typeflag: tar.TypeReg, Name: "/evil"}), "leads out"},
		"link":          {tarball(tar.Header{Typeflag: tar.TypeSymlink, Name: "evil", Linkname: "/etc"}), "neither a folder nor a file"},
		"file in place": {tarball(tar.Header{Typeflag: tar.TypeReg, Name: "a"}, tar.Header{Typeflag: tar.TypeReg, Name: "a/b"}), "a/b"},
	} {
		dir := t.TempDir()
		if err := archive.Unpack(strings.NewReader(c.content), dir); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: Unpack gave %v, not an error with %q", name, err, c.says)
		}
	}
}
