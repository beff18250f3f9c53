package hostile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/azp-scaler/azp-scaler/test/e2e/canary"
)

const (
	// largestRegion bounds what is read of one mapping of another process.
	largestRegion = 64 << 20
	// roots of file systems that are not of files.
	procDir = "/proc"
	sysDir  = "/sys"
)

// search looks for secrets and remembers where they were.
type search struct {
	set    *canary.Set
	proc   string // /proc, but in tests.
	report *Report
}

func newSearch(set *canary.Set, report *Report) *search {
	report.Looked = map[string]int{}
	return &search{set: set, proc: procDir, report: report}
}

func (s *search) found(kind, where string, names []string) {
	s.report.Looked[kind]++
	for _, name := range names {
		s.report.Findings = append(s.report.Findings, Finding{Kind: kind, Name: name, Where: where})
	}
}

// environment looks at variables.
func (s *search) environment(environ []string) {
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		s.found(InEnvironment, name, s.set.In([]byte(variable)))
	}
}

// files looks at every regular file below a root that can be read. What can't be read is
// no trouble: that is how it ought to be.
func (s *search) files(kind, root string) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // Not to be read; the search goes on.
		case entry.IsDir() && (path == procDir || path == sysDir || strings.HasSuffix(path, "/root"+procDir) || strings.HasSuffix(path, "/root"+sysDir)):
			return fs.SkipDir
		case entry.Type().IsRegular():
			s.file(kind, path)
		}
		return nil
	})
}

// file looks at one file, which may be of any kind by now.
func (s *search) file(kind, path string) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	names, _ := s.set.Read(file) // What could be read counts.
	s.found(kind, path, names)
}

// processes looks at every process but this one.
func (s *search) processes() {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		s.report.Troubles = append(s.report.Troubles, err.Error())
	}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() {
			s.process(filepath.Join(s.proc, entry.Name()))
		}
	}
}

func (s *search) process(dir string) {
	for _, name := range []string{"environ", "cmdline"} {
		s.file(InProcess, filepath.Join(dir, name))
	}
	descriptors, _ := os.ReadDir(filepath.Join(dir, "fd")) // Of another user's there are none.
	for _, descriptor := range descriptors {
		s.file(InProcess, filepath.Join(dir, "fd", descriptor.Name()))
	}
	// The root of a container beside this one would be another.
	ours, errOurs := os.Stat("/")
	theirs, errTheirs := os.Stat(filepath.Join(dir, "root") + "/")
	if errOurs == nil && errTheirs == nil && !os.SameFile(ours, theirs) {
		s.files(InProcess, filepath.Join(dir, "root")+"/")
	}
	if err := s.memory(dir); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		s.report.Troubles = append(s.report.Troubles, err.Error())
	}
}

// memory looks at what a process has mapped: /proc/PID/maps and mem, as in proc(5).
func (s *search) memory(dir string) error {
	maps, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return err
	}
	defer func() { _ = maps.Close() }()
	memory, err := os.Open(filepath.Join(dir, "mem"))
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	var names []string
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") || to-from > largestRegion {
			continue
		}
		found, _ := s.set.Read(io.NewSectionReader(memory, from, to-from)) // Some regions can't be read.
		names = append(names, found...)
	}
	slices.Sort(names)
	s.found(InMemory, dir, slices.Compact(names))
	return lines.Err()
}
