package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/azp-scaler/azp-scaler/pkg/agent"
)

const docsPath = "../../docs/agent.md"

// settingsTable is the documentation's table of the settings.
func settingsTable() string {
	var b strings.Builder
	b.WriteString("| variable | default | meaning |\n| --- | --- | --- |\n")
	for _, v := range variables() {
		value := ""
		if v.value != "" {
			value = "`" + v.value + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.name, value, v.about)
	}
	return b.String()
}

// exitCodeTable is the documentation's table of the exit codes.
func exitCodeTable() string {
	about := map[agent.ExitCode]string{
		agent.ExitDone:            "`run`: a build ran and ended, whatever its result; the others: did what they are for",
		agent.ExitNoBuild:         "idle until asked to stop, or until the idle limit",
		agent.ExitConfiguration:   "a setting is wrong, or the image or pod lacks something; trying again does not help",
		agent.ExitCredential:      "the token is refused, expired or cannot be read, or lacks *Agent Pools (read & manage)*",
		agent.ExitUnreachable:     "no answer, or the service did not give or do what was asked within the limit; a package with a wrong hash",
		agent.ExitCrashed:         "the agent program ended by itself, or never listened",
		agent.ExitConfigureFailed: "`config.sh` failed or took longer than its limit",
		agent.ExitBuildLost:       "also when the build's share of the grace period was over",
	}
	var b strings.Builder
	b.WriteString("| code | outcome | when |\n| --- | --- | --- |\n")
	for _, code := range agent.ExitCodes() {
		fmt.Fprintf(&b, "| %d | %s | %s |\n", int(code), code, about[code])
	}
	return b.String()
}

// TestDocumentation holds the tables of docs/agent.md to the code; -update writes them.
func TestDocumentation(t *testing.T) {
	content, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for name, table := range map[string]string{"settings": settingsTable(), "exit codes": exitCodeTable()} {
		begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->\n"
		before, rest, found := strings.Cut(text, begin)
		old, after, closed := strings.Cut(rest, end)
		if !found || !closed {
			t.Fatalf("%s has no place for the table of %s", docsPath, name)
		}
		if old != table && !*updateDocs {
			t.Errorf("the table of %s in %s differs from the code: run go test ./cmd/agent-entrypoint -run TestDocumentation -update", name, docsPath)
		}
		text = before + begin + table + end + after
	}
	if *updateDocs {
		if err := os.WriteFile(docsPath, []byte(text), 0o644); err != nil { //nolint:gosec // A page to read.
			t.Fatal(err)
		}
	}
}

// updateDocs says to write the tables instead of comparing them.
var updateDocs = flag.Bool("update", false, "write the tables of the documentation")
