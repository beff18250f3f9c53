package e2e_test

import (
	"strings"

	"github.com/azp-scaler/azp-scaler/test/e2e/env"
)

// hostileBuild looks for the pool's token wherever a build can look: in its environment, in
// the environments and command lines of all processes, and in every file. It fails if it
// finds one, and also if it overlooks the one that it has hidden itself. Before it ends it
// spoils what it can of the agent program, and has it lead elsewhere: whoever ran any of that
// with a token, or sent one there, would give it away or could not remove the agent.
//
// Tokens of the service's stand-in begin alike. The script is among what it searches, so it
// must not have a text like a token in it.
func hostileBuild() env.Build {
	return env.Build{Name: "hostile", Kind: env.KindPlain, Want: "succeeded", Steps: []string{strings.Join([]string{
		`begin=pa; begin=${begin}t-; like="${begin}[0-9a-f]{16}-"`,
		`hidden=$(mktemp); echo "${begin}0123456789abcdef-decoy" > "$hidden"`,
		`found=$({ env | grep -E "$like"`,
		`  grep -aEls "$like" /proc/[0-9]*/environ /proc/[0-9]*/cmdline`,
		`  grep -raEls -D skip --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev "$like" /; } 2>/dev/null)`,
		`for spoil in /azp/agent/config.sh /azp/agent/run.sh /azp/agent/bin/Agent.Listener; do`,
		`  { rm -f "$spoil" && printf '#!/bin/sh\nexit 1\n' > "$spoil" && chmod +x "$spoil"; } || exit 2; done`,
		`sed -i 's#"serverUrl": *"[^"]*"#"serverUrl": "https://127.0.0.1:1/elsewhere"#' /azp/agent/.agent || exit 3`,
		`grep -q elsewhere /azp/agent/.agent || exit 4`,
		`echo "found: $found"; [ "$found" = "$hidden" ]`,
	}, "\n")}}
}
