package listener

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// maxCapability is the length from which on a variable's value is not published.
const maxCapability = 1024

// tools are programs that the agent publishes with their path where it finds them.
func tools() []string {
	return []string{"ant", "az", "bash", "cargo", "clang", "cmake", "curl", "docker", "dotnet", "gcc", "git", "go", "gulp", "helm", "java", "kubectl", "make", "mvn", "node", "npm", "php", "python", "python3", "ruby", "sh", "svn", "terraform", "yarn"}
}

// capabilities gathers the system capabilities: what the agent is, its whole
// environment, the tools on the path and the lines of .capabilities.
func (l *listener) capabilities(agentName string) (map[string]string, error) {
	found := map[string]string{}
	ignored := map[string]bool{}
	for name := range strings.SplitSeq(l.Env["VSO_AGENT_IGNORE"], ",") {
		ignored[strings.TrimSpace(name)] = true
	}
	// What the agent itself needs is never of use to a demand.
	ignored["VSO_AGENT_IGNORE"] = true
	for name, value := range l.Env {
		if !ignored[name] && len(value) < maxCapability {
			found[name] = value
		}
	}
	for _, tool := range tools() {
		if path := lookPath(tool, l.Env["PATH"]); path != "" {
			found[tool] = path
		}
	}
	architecture := map[string]string{"amd64": "X64", "arm64": "ARM64", "arm": "ARM"}[runtime.GOARCH]
	// Whatever its standard input is, only an agent started as a service has no session.
	interactive := "True"
	if strings.EqualFold(l.command.values[flagStartup], "service") {
		interactive = "False"
	}
	maps.Copy(found, map[string]string{
		"Agent.Name":           agentName,
		"Agent.Version":        l.release.Version,
		"Agent.OS":             "Linux",
		"Agent.OSArchitecture": architecture,
		"Agent.OSVersion":      kernel(),
		"Agent.ComputerName":   l.Host,
		"Agent.HomeDirectory":  string(l.Root),
		"InteractiveSession":   interactive,
	})
	more, err := l.Root.Capabilities()
	if err != nil {
		return nil, err
	}
	maps.Copy(found, more)
	return found, nil
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(release))
}

// lookPath searches the path that the agent was given, which need not be the one
// that this process started with.
func lookPath(program, path string) string {
	for _, dir := range filepath.SplitList(path) {
		candidate := filepath.Join(dir, program)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate
		}
	}
	return ""
}
