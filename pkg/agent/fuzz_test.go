package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzAgentFile holds that no .agent file makes a registration without an agent and a pool,
// whatever the agent program, or a build, has written there.
func FuzzAgentFile(f *testing.F) {
	for _, seed := range []string{
		"\ufeff" + `{"agentId":12,"agentName":"azp-1","poolId":3,"poolName":"Default","serverUrl":"https://dev.azure.com/acme/","workFolder":"_work"}`,
		`{"agentId":12,"poolId":3}`, `{"agentId":-1,"poolId":3}`, `{"agentId":"12","poolId":3}`, `{"agentId":1e3,"poolId":3}`, `[]`, `null`, ``, `{"agentId":12,"agentId":0,"poolId":3}`,
	} {
		f.Add([]byte(seed))
	}
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(filepath.Join(root, ".agent"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		reg, err := readAgentFile(root)
		if err != nil {
			if reg != (registration{}) {
				t.Errorf("an error and a registration: %+v, %v", reg, err)
			}
			return
		}
		if reg.AgentID <= 0 || reg.PoolID <= 0 {
			t.Errorf("%q gives %+v", content, reg)
		}
		var plain agentFile
		if json.Unmarshal(bytes.TrimPrefix(content, []byte("\ufeff")), &plain) != nil || registration(plain) != reg {
			t.Errorf("%q gives %+v, and as JSON it is %+v", content, reg, plain)
		}
	})
}

// FuzzParseLine holds that a line is taken for what it begins with, and that a job's result is
// always one that there is: a pipeline chooses the name of its job.
func FuzzParseLine(f *testing.F) {
	for _, seed := range []string{
		"2026-01-02 03:04:05Z: Listening for Jobs", "Running job: build", "Job build completed with result: Succeeded",
		"Job Running job: x completed with result: Failed completed with result: Canceled", "Job x completed with result: Great", "Running job: Listening for Jobs\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		e := parseLine(line)
		plain := stamp.ReplaceAllString(strings.TrimRight(line, "\r\n"), "")
		switch e.kind {
		case lineRunning:
			if plain != "Running job: "+e.job {
				t.Errorf("%q runs the job %q", line, e.job)
			}
		case lineResult:
			if !slices.Contains(results(), e.result) || !strings.HasPrefix(plain, "Job "+e.job) {
				t.Errorf("%q ends the job %q as %q", line, e.job, e.result)
			}
		case lineListening, lineOther:
			if e.job != "" || e.result != "" {
				t.Errorf("%q tells of the job %q", line, e.job)
			}
		}
	})
}

// FuzzUnpack holds that nothing of a package comes to lie outside of its folder, nor leads
// there.
func FuzzUnpack(f *testing.F) {
	f.Add("bin/Agent.Listener", byte(tar.TypeReg), "", "bin/x", byte(tar.TypeSymlink), "Agent.Listener")
	f.Add("../outside", byte(tar.TypeReg), "", "a", byte(tar.TypeDir), "")
	f.Add("a", byte(tar.TypeSymlink), "..", "a/outside", byte(tar.TypeReg), "")
	f.Add("a/b", byte(tar.TypeSymlink), "../../outside", "c", byte(tar.TypeLink), "../outside")
	f.Add("a", byte(tar.TypeSymlink), "/", "a/tmp/x", byte(tar.TypeReg), "")
	f.Fuzz(func(t *testing.T, first string, firstType byte, firstLink, second string, secondType byte, secondLink string) {
		var archive bytes.Buffer
		zipped := gzip.NewWriter(&archive)
		w := tar.NewWriter(zipped)
		for _, header := range []tar.Header{{Name: first, Typeflag: firstType, Linkname: firstLink}, {Name: second, Typeflag: secondType, Linkname: secondLink}} {
			header.Mode = 0o755
			if w.WriteHeader(&header) != nil {
				t.Skip("tar has no such entry")
			}
		}
		if w.Close() != nil || zipped.Close() != nil {
			t.Skip("tar has no such archive")
		}
		top := t.TempDir()
		folder := filepath.Join(top, "inside", "folder")
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		unpackErr := unpack(t.Context(), &archive, folder)
		err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			within := strings.HasPrefix(path, folder)
			if !within && !strings.HasPrefix(folder, path) {
				t.Errorf("%s lies outside (%v)", path, unpackErr)
			}
			if entry.Type()&fs.ModeSymlink == 0 {
				return nil
			}
			if target, err := os.Readlink(path); err == nil && unpackErr == nil && !strings.HasPrefix(filepath.Join(filepath.Dir(path), target), folder) {
				t.Errorf("%s leads to %s", path, target)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
