#!/bin/bash
# Keeps what steps may need of the environment that the agent was configured in.
for name in LANG JAVA_HOME ANT_HOME M2_HOME ANDROID_HOME GRADLE_HOME NVM_BIN NVM_PATH; do
    if [ -n "${!name:-}" ] && ! grep -qs "^$name=" .env; then
        echo "$name=${!name}" >>.env
    fi
done
echo "$PATH" >.path
