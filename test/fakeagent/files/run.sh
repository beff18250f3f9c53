#!/bin/bash
# Runs the agent. It is a shell around bin/Agent.Listener and passes no signal on.
if [ "$(id -u)" -eq 0 ] && [ -z "${AGENT_ALLOW_RUNASROOT:-}" ]; then
    echo "Must not run interactively with sudo"
    exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
./bin/Agent.Listener run "$@"
code=$?
if [ "$code" -eq 4 ]; then
    # A once-agent ended for an update: once its programs are back it runs again.
    for ((i = 0; i < 20; i++)); do
        sleep 1
        [ -x bin/Agent.Listener ] && break
    done
    ./bin/Agent.Listener run "$@"
    code=$?
fi
exit "$code"
