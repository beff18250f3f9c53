package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRegistration(t *testing.T) {
	dir := t.TempDir()
	if _, err := readRegistration(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing recorded gives %v, want fs.ErrNotExist", err)
	}
	want := registration{AgentID: 7, AgentName: "a", PoolID: 3}
	if err := writeRegistration(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := readRegistration(dir); err != nil || got != want {
		t.Errorf("readRegistration = %+v, %v, want %+v", got, err, want)
	}
	info, err := os.Stat(filepath.Join(dir, registrationFile))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v, want 0640", info.Mode(), err)
	}
	for _, bad := range []string{"", "{", `{"agentId":0,"poolId":3}`, `{"agentId":7}`, strings.Repeat("x", largestFile+1)} {
		put(t, filepath.Join(dir, registrationFile), bad)
		if _, err := readRegistration(dir); err == nil {
			t.Errorf("content %.30q is taken", bad)
		}
	}
}

func TestReadAgentFileWithMark(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, ".agent"), "\ufeff"+`{"agentId":12,"agentName":"n","poolId":4,"serverUrl":"https://x"}`)
	if got, err := readAgentFile(dir); err != nil || got != (registration{AgentID: 12, AgentName: "n", PoolID: 4}) {
		t.Errorf("readAgentFile = %+v, %v", got, err)
	}
	put(t, filepath.Join(dir, ".agent"), `{"agentName":"n"}`)
	if _, err := readAgentFile(dir); err == nil {
		t.Error("an agent without an id is taken")
	}
}

func TestCheckCredentials(t *testing.T) {
	const token = "canary-token"
	tests := []struct {
		name, credentials, agent, says string
	}{
		{"good", "\ufeff" + `{"scheme":"OAuth","data":{}}`, `{}`, ""},
		{"the pool's own credential", `{"scheme":"PAT","data":{}}`, `{}`, "scheme"},
		{"token in a file", `{"scheme":"OAuth"}`, `{"x":"` + token + `"}`, "token"},
		{"no JSON", `<html>`, `{}`, ".credentials"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, ".credentials"), tt.credentials)
			put(t, filepath.Join(dir, ".agent"), tt.agent)
			err := checkCredentials(dir, token)
			if (err == nil) != (tt.says == "") || (err != nil && !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("checkCredentials = %v, want %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Error("the error holds the token")
			}
		})
	}
}

func TestCopyHandover(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := copyHandover(from, to, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty handover gives %v", err)
	}
	// As in a mounted Secret: links by way of a folder that is swapped.
	for _, name := range append(requiredFiles(), ".proxy") {
		put(t, filepath.Join(from, "..data", name), "content of "+name)
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(from, name)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(from, "stranger"), "x")
	if err := copyHandover(from, to, 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(to)
	if err != nil || len(entries) != 4 {
		t.Fatalf("laid down %v, %v, want the four known files", entries, err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v, want a regular file with 0600", entry.Name(), info.Mode(), err)
		}
		if content, err := os.ReadFile(filepath.Join(to, entry.Name())); err != nil || string(content) != "content of "+entry.Name() {
			t.Errorf("%s holds %q, %v", entry.Name(), content, err)
		}
	}
	if err := os.Remove(filepath.Join(from, "..data", ".agent")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(from, "..data", ".agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := copyHandover(from, to, 0o600); err == nil {
		t.Error("a folder is taken for a file")
	}
}

func TestVerdict(t *testing.T) {
	dir := t.TempDir()
	if got := readVerdict(dir); got != verdictNone {
		t.Errorf("verdict %v before there is one", got)
	}
	for _, v := range []verdict{verdictBusy, verdictWithdrawn} {
		if err := writeVerdict(dir, v); err != nil {
			t.Fatal(err)
		}
		if got := readVerdict(dir); got != v {
			t.Errorf("verdict %v, want %v", got, v)
		}
	}
	if err := writeVerdict(filepath.Join(dir, "absent"), verdictBusy); err == nil {
		t.Error("a verdict for nowhere is no error")
	}
}

func TestClaimedIsOnlyLookedAt(t *testing.T) {
	dir := t.TempDir()
	if isClaimed(dir) {
		t.Error("claimed before it was")
	}
	// Whatever a build puts there counts as the sign and is neither followed nor opened.
	if err := os.Symlink("/proc/self/environ-that-is-not-there", filepath.Join(dir, claimedFile)); err != nil {
		t.Fatal(err)
	}
	if !isClaimed(dir) {
		t.Error("a dangling link does not count")
	}
	other := t.TempDir()
	if err := markClaimed(other); err != nil || !isClaimed(other) {
		t.Errorf("markClaimed = %v", err)
	}
	if err := markClaimed(other); err != nil {
		t.Errorf("a second claim is an error: %v", err)
	}
	if err := markClaimed(filepath.Join(other, "absent")); err == nil {
		t.Error("a claim for nowhere is no error")
	}
}

func TestClearConfiguration(t *testing.T) {
	dir := t.TempDir()
	if err := clearConfiguration(dir); err != nil {
		t.Errorf("nothing to clear: %v", err)
	}
	put(t, filepath.Join(dir, ".agent"), "x")
	if err := clearConfiguration(dir); err != nil || exists(filepath.Join(dir, ".agent")) {
		t.Errorf("not cleared: %v", err)
	}
	put(t, filepath.Join(dir, ".agent", "in", "the", "way"), "x")
	if err := clearConfiguration(dir); err == nil {
		t.Error("what cannot be cleared is no error")
	}
}

// archiveOf makes a gzipped archive.
func archiveOf(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buffer bytes.Buffer
	zipped := gzip.NewWriter(&buffer)
	w := tar.NewWriter(zipped)
	for _, h := range headers {
		content := []byte("content")
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return &buffer
}

func TestUnpack(t *testing.T) {
	into := t.TempDir()
	err := unpack(context.Background(), archiveOf(t,
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o555},
		tar.Header{Name: "./bin/Agent.Listener", Typeflag: tar.TypeReg, Mode: 0o6755},
		tar.Header{Name: "externals/node/bin/node", Typeflag: tar.TypeReg, Mode: 0o555},
		tar.Header{Name: "externals/node/link", Typeflag: tar.TypeSymlink, Linkname: "../node/bin/node"},
		tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "./bin/Agent.Listener"},
		tar.Header{Name: "license.html", Typeflag: tar.TypeReg, Mode: 0o444},
	), into)
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{
		"bin/Agent.Listener":      0o755,
		"externals/node/bin/node": 0o755,
		"externals/node/link":     0o755,
		"hard":                    0o755,
		"license.html":            0o644,
	} {
		info, err := os.Stat(filepath.Join(into, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	tests := map[string][]tar.Header{
		"a path upwards":              {file("../escaped")},
		"a path upwards in the midst": {file("bin/../../escaped")},
		"an absolute path":            {file("/tmp/escaped")},
		"an absolute link":            {link("bin", "/tmp"), file("bin/escaped")},
		"a link upwards":              {link("bin", "../escaped"), file("bin/x")},
		"a link upwards by a folder":  {{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}, link("a/b", "../../escaped")},
		"a hard link outside":         {{Name: "x", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"a device":                    {{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"a fifo":                      {{Name: "pipe", Typeflag: tar.TypeFifo}},
		"the same file twice":         {file("x"), file("x")},
		"a link over a link": {
			// Each is harmless by itself; together they lead out.
			{Name: "d/e/", Typeflag: tar.TypeDir, Mode: 0o755}, link("d/e/up", ".."), link("s", "d/e/up"), link("t", "s/../.."), file("t/escaped"),
		},
	}
	for name, headers := range tests {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			put(t, filepath.Join(parent, "secret"), "x")
			into := filepath.Join(parent, "a", "b")
			if err := os.MkdirAll(into, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unpack(context.Background(), archiveOf(t, headers...), into); err == nil {
				t.Error("unpacked")
			}
			var outside []string
			if err := filepath.WalkDir(parent, func(path string, _ fs.DirEntry, err error) error {
				if strings.Contains(filepath.Base(path), "escaped") {
					outside = append(outside, path)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if len(outside) > 0 || exists("/tmp/escaped") {
				t.Errorf("something got out: %v", outside)
			}
		})
	}
}

func TestUnpackBrokenArchives(t *testing.T) {
	whole := archiveOf(t, tar.Header{Name: "x", Typeflag: tar.TypeReg, Mode: 0o644}).Bytes()
	if err := unpack(context.Background(), bytes.NewReader(whole[:len(whole)-20]), t.TempDir()); err == nil {
		t.Error("a truncated archive is unpacked")
	}
	if err := unpack(context.Background(), strings.NewReader("<html>sign in</html>"), t.TempDir()); err == nil || !strings.Contains(err.Error(), "gzip") {
		t.Errorf("a page is unpacked: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := unpack(ctx, bytes.NewReader(whole), t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context gives %v", err)
	}
}

func TestInstallReplacesWhatIsThere(t *testing.T) {
	root := t.TempDir()
	content := filepath.Join(root, "staging")
	put(t, filepath.Join(content, "bin", "Agent.Listener"), "new")
	put(t, filepath.Join(content, "license.html"), "new")
	put(t, filepath.Join(root, "bin", "half"), "old")
	put(t, filepath.Join(root, "license.html"), "old")
	if err := install(content, root); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(root, "bin", "half")) {
		t.Error("a half package is still there")
	}
	if got, err := os.ReadFile(filepath.Join(root, "license.html")); err != nil || string(got) != "new" {
		t.Errorf("license.html holds %q, %v", got, err)
	}
}
