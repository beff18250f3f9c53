# Removes what one run of the cluster left on the machine, as written in the
# ledger named by the first argument. It starts its work when its standard input
# ends: the owner of the run holds the other end, so that is when the owner lets
# go of it or dies, even by SIGKILL. Running it twice does no harm.
set -u
ledger=$1
cat >/dev/null 2>&1
[ -f "$ledger" ] || exit 0

# same PID START: the process still runs, is not waiting to be collected, and is
# not another one that was given the same number.
same() {
	set -- "$1" "$2" $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null)
	[ $# -ge 22 ] && [ "$3" != Z ] && [ "${22}" = "$2" ]
}

running() {
	while read -r kind pid start; do
		if [ "$kind" = process ] && same "$pid" "$start"; then
			kill -KILL "$pid" 2>/dev/null
			return 0
		fi
	done <"$ledger"
	return 1
}

# retry COMMAND: until it succeeds, for about five seconds at most.
retry() {
	tries=0
	until "$@"; do
		tries=$((tries + 1))
		[ "$tries" -lt 100 ] || return 1
		sleep 0.05
	done
}

ended() { ! running; }

# A cgroup is busy until the last process in it has been collected.
uncgroup() {
	[ -d "$1" ] || return 0
	find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
	[ ! -d "$1" ]
}

undirectory() { rm -rf -- "$1" 2>/dev/null; [ ! -e "$1" ]; }

failed=0
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
if grep -qx "boot $boot" "$ledger"; then
	retry ended || failed=1
	while read -r kind path; do
		[ "$kind" = cgroup ] || continue
		retry uncgroup "$path" || failed=1
	done <"$ledger"
fi
while read -r kind path; do
	[ "$kind" = directory ] || continue
	retry undirectory "$path" || failed=1
done <"$ledger"
[ "$failed" = 0 ] && rm -f -- "$ledger"
exit "$failed"
