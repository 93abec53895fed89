#!/usr/bin/env bash
# A Kubernetes cluster of two nodes on this machine, in network namespaces of its own; README.md tells more.
#
# usage: cluster.sh up|down|kubeconfig|diagnose | import ARCHIVE | start|stop|restart PART [NODE] | exec COMMAND…
# usage:            | on NODE COMMAND…
set -euo pipefail
. "$(dirname "$(realpath "$0")")/lib.sh"
. "$here/certs.sh"
. "$here/images.sh"
. "$here/parts.sh"
. "$here/down.sh"

# What a node has for its own. The machine gets an empty folder where it has none, until `down`.
own_paths=(/run/containerd /usr/libexec/kubernetes /var/lib/containerd /var/lib/cni /var/lib/kubelet
	/var/log/containers /var/log/pods)
# What a kubelet sets for all of the machine.
sysctls=(kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes
	vm/overcommit_memory vm/panic_on_oom)

check_machine() {
	local command package missing=()
	while read -r command package; do
		command -v "$command" >/dev/null || missing+=("$package")
	done <<-END
		busybox busybox-static
		containerd containerd
		/usr/lib/cni/ptp containernetworking-plugins
		ip iproute2
		iptables iptables
		jq jq
		mount mount
		nft nftables
		nsenter util-linux
		openssl openssl
		runc runc
	END
	[ ${#missing[@]} -eq 0 ] || fail "install these first (Debian's names): ${missing[*]}"
	# The image has no libraries for it.
	! ldd "$(command -v busybox)" >/dev/null 2>&1 || fail "install this first (Debian's name): busybox-static"
	[ -n "$cgroup2" ] || fail "no cgroup v2 hierarchy is mounted"
	[ ! -e "$state" ] && [ ! -e "$cgroup" ] || fail "one is up, or was: run $0 down"
	[ -z "$(our_cgroups)" ] || fail "this machine is a node of another cluster, which has $(our_cgroups | head -n 1)"
}

# remember_machine TOOLS: before anything of it is changed.
remember_machine() {
	local name path
	local -a tools
	mkdir "$state"/{bin,log,pid}
	IFS=: read -ra tools <<<"$1"
	for path in "${tools[@]}"; do ln -s "$path"/* "$state/bin"; done
	for name in "${sysctls[@]}"; do
		[ ! -e "/proc/sys/$name" ] || echo "$name $(<"/proc/sys/$name")" >>"$state/sysctls"
	done
	for path in "${own_paths[@]}"; do
		[ -d "$path" ] || echo "$path" >>"$state/made"
	done
	mkdir -p "${own_paths[@]}"
}

# The kubelet of node2 makes its cgroups in this one, which has to be there for each kind of resource.
make_node2_cgroup() {
	local root file
	for root in $(cgroup_roots); do
		mkdir "$root/$node2_cgroup"
		for file in cpuset.mems cpuset.cpus; do
			[ ! -e "$root/$file" ] || cat "$root/$file" >"$root/$node2_cgroup/$file"
		done
	done
}

make_network() {
	local node other
	launch outside unshare --net "$here/node.sh" outside "$state/pid/outside.ready" -
	for node in "${nodes[@]}"; do
		mkdir -p "$state/$node"
		launch "$node" unshare --net --mount --uts "$here/node.sh" "$node" "$state/pid/$node.ready" \
			"$state/$node/own" "${own_paths[@]}"
	done
	for node in outside "${nodes[@]}"; do
		wait_for 10 "$node" test -e "$state/pid/$node.ready"
	done
	# By the mounts they stay until `down` has ended their processes, so that nobody else gets their numbers before.
	mkdir "$state/network"
	for node in outside "${nodes[@]}"; do
		touch "$state/network/$node"
		mount --bind "/proc/$(<"$state/pid/$node")/ns/net" "$state/network/$node"
		stat -L -c %i "$state/network/$node" >>"$state/networks"
	done
	# The outside is what the nodes are plugged into, but leads to nowhere else.
	inside outside ip link add switch type bridge
	inside outside ip address add "$(address_of outside)/24" dev switch
	inside outside ip link set switch up
	for node in "${nodes[@]}"; do
		ip link add eth0 netns "$(<"$state/pid/$node")" type veth peer name "$node" netns "$(<"$state/pid/outside")"
		inside outside ip link set "$node" master switch up
		inside "$node" ip address add "$(address_of "$node")/24" dev eth0
		inside "$node" ip link set eth0 up
		inside "$node" ip route add default via "$(address_of outside)"
		for other in "${nodes[@]}"; do
			[ "$other" = "$node" ] || inside "$node" ip route add "$(pods_of "$other")" via "$(address_of "$other")"
		done
	done
}

# A new node has a taint that keeps pods away; it is taken from it after it is ready.
is_ready() {
	kubectl get node "$1" -o json | jq '[.status.conditions[] | select(.type == "Ready")][0] as $ready
		| if $ready.status == "True" and .spec.taints == null then empty else $ready.message | halt_error(1) end'
}

up() {
	local node bin
	[ "$(id -u)" -eq 0 ] || fail "it makes namespaces and cgroups: run it as root"
	check_machine
	bin=$("$here/tools.sh")

	# From here on it is this one's to take down.
	mkdir "$state"
	: >"$state/made"
	trap '[ $? -eq 0 ] || { trap "" INT TERM; say "taking it down"; down; }' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	say "making nodes"
	remember_machine "$bin"
	make_certificates
	make_node2_cgroup
	make_network
	say "starting the API server"
	start_part etcd
	for node in "${nodes[@]}"; do
		start_part containerd "$node"
	done
	start_part apiserver
	make_images "$state/images.tar"
	for node in "${nodes[@]}"; do
		await_part containerd "$node"
	done
	import_images "$state/images.tar" 2>"$state/log/images.log"
	await_part apiserver
	say "starting the kubelets"
	start_part controller-manager
	start_part scheduler
	for node in "${nodes[@]}"; do
		start_part kubelet "$node"
		start_part proxy "$node"
	done
	for node in "${nodes[@]}"; do
		wait_for 60 "kubelet-$node" is_ready "$node"
	done
	# Nothing is kept of it: it is allowed as soon as its namespace has a service account.
	wait_for 30 controller-manager kubectl run probe --image docker.io/local/busybox:1 --dry-run=server
	say "up: $0 exec kubectl get nodes"
}

diagnose() {
	local log
	[ -d "$state" ] || fail "none is up"
	kubectl get nodes,pods,services,daemonsets --all-namespaces -o wide || true
	kubectl get events --all-namespaces --sort-by .metadata.creationTimestamp || true
	for log in "$state"/log/*.log; do
		echo "==> $log"
		tail -n 40 "$log"
	done
}

# As a user: from the network outside of the cluster, with the cluster's kubectl and Helm.
outside_exec() {
	alive outside || fail "there is no cluster: run $0 up"
	export KUBECONFIG=$state/admin.kubeconfig
	exec nsenter --target "$(<"$state/pid/outside")" --net -- "$@"
}

verb=${1-}
shift || true
case $verb in
up | down | diagnose) "$verb" ;;
import) import_images "${1:?which archive?}" ;;
start)
	start_part "$@"
	await_part "$@"
	;;
stop) stop_part "$@" ;;
restart)
	stop_part "$@"
	start_part "$@"
	await_part "$@"
	;;
exec) outside_exec "$@" ;;
on) inside "$@" ;;
kubeconfig) echo "$state/admin.kubeconfig" ;;
*)
	sed -n 's/^# usage: //p' "$0" >&2
	exit 2
	;;
esac
