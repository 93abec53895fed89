# shellcheck shell=bash
# Sourced: the names that all of the harness uses, and how a part of the cluster is run, awaited and stopped.

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
state=$(realpath -m "${TCPTRACER_CLUSTER_DIR:-/run/tcptracer-e2e}")
certs=$state/certs
nodes=(node1 node2)
# Each part runs in a cgroup of its own under this one, so that nothing it has started is missed.
cgroup2=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)
cgroup=$cgroup2/tcptracer-e2e
# The parent of node2's cgroups; node1 has them where a machine's only kubelet has them.
node2_cgroup=tbn2
# The tools that the cluster was brought up with; a shell may come without the system's own.
export PATH=$state/bin:$PATH:/usr/sbin:/sbin

say() {
	echo "cluster: $*" >&2
}

fail() {
	say "$*"
	exit 1
}

address_of() {
	case $1 in
	node1) echo 10.77.0.1 ;;
	node2) echo 10.77.0.2 ;;
	outside) echo 10.77.0.254 ;;
	esac
}

pods_of() {
	echo "10.78.${1#node}.0/24"
}

services=10.79.0.0/24
all_pods=10.78.0.0/16
api=https://$(address_of node1):6443

# launch PART COMMAND…: starts it in the background, in its cgroup and with its log.
launch() {
	local part=$1
	shift
	mkdir -p "$cgroup/$part"
	rm -f "$state/pid/$part"
	(
		echo "$BASHPID" >"$cgroup/$part/cgroup.procs"
		echo "$BASHPID" >"$state/pid/$part"
		cd /
		exec setsid "$@"
	) </dev/null >>"$state/log/$part.log" 2>&1 &
	disown
	until [ -s "$state/pid/$part" ] || ! kill -0 $! 2>/dev/null; do
		sleep 0.01
	done
}

# A number that another process has got meanwhile is not in the cgroup.
alive() {
	[ -s "$state/pid/$1" ] && grep -qx "$(<"$state/pid/$1")" "$cgroup/$1/cgroup.procs" 2>/dev/null
}

blame() {
	say "$1 $2; the end of its log:"
	tail -n 25 "$state/log/$1.log" | sed 's/^/  /' >&2
	exit 1
}

# wait_for SECONDS PART COMMAND…: until the command succeeds, which is up to this part.
wait_for() {
	local limit=$1 part=$2 end=$((SECONDS + $1)) answer
	shift 2
	until answer=$("$@" 2>&1); do
		alive "$part" || blame "$part" "has ended"
		[ $SECONDS -lt $end ] || blame "$part" "is not ready after $limit s (${answer:-no answer})"
		sleep 0.1
	done
}

# The API server would wait a minute for its watches to end.
stop_process() {
	local part=$1 signal
	for signal in TERM KILL; do
		! alive "$part" || kill -s "$signal" "$(<"$state/pid/$part")"
		for _ in $(seq 30); do
			alive "$part" || return 0
			sleep 0.1
		done
	done
	blame "$part" "does not end"
}

# inside NODE COMMAND…: on a node, or in the network outside of the cluster, which shares all else with the machine.
inside() {
	local place=$1 also=(--mount --uts)
	shift
	alive "$place" || fail "there is no $place: run $0 up"
	[ "$place" != outside ] || also=()
	nsenter --target "$(<"$state/pid/$place")" --net "${also[@]}" -- "$@"
}

kubectl() {
	inside outside kubectl --kubeconfig "$state/admin.kubeconfig" "$@"
}
