# shellcheck shell=bash
# Sourced: takes the cluster down, however far it came up, and tells what is left of it.

cgroup_roots() {
	findmnt -t cgroup,cgroup2 -n -o TARGET
}

# The top ones of those that a cluster makes, in every hierarchy.
our_cgroups() {
	local root
	for root in $(cgroup_roots); do
		ls -d "$root/kubepods" "$root/$node2_cgroup" "$root/${cgroup##*/}" 2>/dev/null || true
	done
}

# The parts, the pods, and whoever else is in a network of the cluster.
our_processes() {
	local path
	for path in $(our_cgroups); do
		find "$path" -name cgroup.procs -exec cat {} + 2>/dev/null || true
	done
	[ -e "$state/networks" ] || return 0
	while read -r path; do
		find /proc/[0-9]*/ns/net -lname "net:?$path?" 2>/dev/null | cut -d / -f 3 || true
	done <"$state/networks"
}

our_mounts() {
	findmnt -n -o TARGET,SOURCE | grep -F "$state/" || true
}

kill_processes() {
	local processes
	for _ in $(seq 200); do
		processes=$(our_processes)
		[ -n "$processes" ] || return 0
		kill -KILL $processes 2>/dev/null || true
		sleep 0.05
	done
	say "these do not end: $(xargs <<<"$processes")"
}

remove_cgroups() {
	local path
	for path in $(our_cgroups); do
		find "$path" -depth -type d -exec rmdir {} + || true
	done
}

# wrong_sysctls: those that are not what they were before the cluster, with what they were.
wrong_sysctls() {
	local name value
	while read -r name value; do
		[ "$(<"/proc/sys/$name")" = "$value" ] || echo "$name $value"
	done <"$state/sysctls"
}

restore_machine() {
	local name value
	[ ! -e "$state/sysctls" ] || wrong_sysctls | while read -r name value; do
		echo "$value" >"/proc/sys/$name"
	done
	while read -r name; do
		rmdir --ignore-fail-on-non-empty "$name" 2>/dev/null || true
	done <"$state/made"
}

# Until then, processes are found by the numbers of the networks.
release_networks() {
	local path
	for path in "$state"/network/*; do
		! mountpoint -q "$path" || umount "$path"
	done
}

# What a node mounts is gone with its last process.
down() {
	local left
	[ -e "$state" ] || [ -e "$cgroup" ] || return 0
	[ -e "$state/made" ] || fail "$state is no folder of a cluster"
	! grep -qx "$(stat -L -c %i /proc/self/ns/net)" "$state/networks" 2>/dev/null || fail "down is not for exec"
	kill_processes
	remove_cgroups
	restore_machine
	left=$(our_processes; our_cgroups; wrong_sysctls)
	release_networks
	left+=$(our_mounts)
	[ -z "$left" ] || fail "this is left: $left"
	rm -rf --one-file-system "$state"
}
