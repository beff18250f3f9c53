#!/bin/bash
# Exchanges the agent's programs once the listener has ended.
set -u
for ((i = 0; i < 600; i++)); do
    kill -0 "$UPDATE_PID" 2>/dev/null || break
    sleep 0.05
done
cd "$UPDATE_ROOT" || exit 1
kept="bin.$UPDATE_OLD"
rm -rf "$kept"
mv bin "$kept"
sleep "$UPDATE_GAP"
if [ "$UPDATE_LOSE" = true ]; then
    exit 0
fi
if [ -d "$UPDATE_LATEST/bin" ]; then
    if [ -d "$UPDATE_LATEST/externals" ]; then
        # The switches of this agent are its own, whatever version it has.
        [ -f externals/faults ] && cp externals/faults "$UPDATE_LATEST/externals/faults"
        rm -rf externals
        mv "$UPDATE_LATEST/externals" externals
    fi
    for file in config.sh run.sh env.sh license.html; do
        [ -f "$UPDATE_LATEST/$file" ] && mv -f "$UPDATE_LATEST/$file" "$file"
    done
    mv "$UPDATE_LATEST/bin" bin
else
    cp -a "$kept" bin.new
    mv bin.new bin
fi
rm -rf "$UPDATE_LATEST"
if [ "$UPDATE_RESTART" = true ]; then
    exec ./run.sh
fi
