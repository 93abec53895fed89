#!/usr/bin/env bash
# Shows what a cluster would show, on one machine and as root: three pods, each with a network namespace, a mount
# namespace and a cgroup as a kubelet makes them; the agent, which reads the pods from a file; and the plugin, which is
# asked for the namespace `demo`. Everything made is removed at the end.
#
# usage: demo.sh FOLDER-OF-THE-BINARIES [OPTION-OF-THE-PLUGIN…]
set -euo pipefail

bin=$1
shift
[ "$(id -u)" -eq 0 ] || {
	echo "demo: it makes namespaces and cgroups: run it as root" >&2
	exit 1
}

name=tcptracer-demo-$$
folder=$(mktemp -d "${TMPDIR:-/tmp}/$name.XXXX")
cgroups=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)
slice=$cgroups/$name
pins=/sys/fs/bpf/$name
pids=()

remove() {
	trap '' INT TERM
	[ ${#pids[@]} -eq 0 ] || kill -KILL "${pids[@]}" 2>/dev/null || true
	wait 2>/dev/null || true
	ip netns list | awk -v name="$name" 'index($1, name) == 1 { print $1 }' | xargs -r -n 1 ip netns del
	if [ -d "$slice" ]; then
		# What a container has started ends with it.
		find "$slice" -name cgroup.procs -exec cat {} + | xargs -r kill -KILL 2>/dev/null || true
		for _ in $(seq 100); do
			find "$slice" -depth -type d -exec rmdir {} + 2>/dev/null || true
			[ -d "$slice" ] || break
			sleep 0.05
		done
	fi
	rm -rf "$folder" "$pins"
}
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A switch that the pods are plugged into, out of everybody's sight.
ip netns add "$name"
ip -n "$name" link add br0 type bridge
ip -n "$name" link set br0 up

mkdir -p "$slice/kubepods/burstable"

# pod NUMBER NAMESPACE NAME WORKLOAD PROGRAM: a pod with one container that runs the program, in Perl; its address is
# 10.77.0.NUMBER.
pod() {
	local number=$1 namespace=$2 pod=$3 workload=$4 program=$5
	local uid id netns=$name-$1 cgroup
	uid=$(cat /proc/sys/kernel/random/uuid)
	id=$(cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/uuid | tr -d '\n-')
	tr -d '\n' >"$folder/pod.$number" <<-END
		{
		  "metadata": {
		    "name": "$pod", "namespace": "$namespace", "uid": "$uid", "labels": { "app": "$workload" },
		    "ownerReferences": [
		      { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "$workload", "uid": "$uid", "controller": true }
		    ]
		  },
		  "spec": { "nodeName": "node-1", "containers": [ { "name": "main", "image": "perl" } ] },
		  "status": { "containerStatuses": [ {
		    "name": "main", "image": "perl", "imageID": "", "ready": true, "restartCount": 0,
		    "containerID": "containerd://$id"
		  } ] }
		}
	END
	printf '{ "kind": "PodList", "apiVersion": "v1", "items": [%s] }' \
		"$(awk 'NR > 1 { print "," } { print }' "$folder"/pod.*)" >"$folder/pods.new"
	mv "$folder/pods.new" "$folder/pods.json"

	ip netns add "$netns"
	ip -n "$netns" link set lo up
	ip -n "$netns" link add eth0 type veth peer name "pod$number" netns "$name"
	ip -n "$netns" address add "10.77.0.$number/24" dev eth0
	ip -n "$netns" link set eth0 up
	ip -n "$name" link set "pod$number" master br0 up
	cgroup=$slice/kubepods/burstable/pod$uid/$id
	mkdir -p "$cgroup"
	# Perl makes what is put into $0 the name of the process.
	nsenter --net="/run/netns/$netns" unshare --mount \
		sh -c 'echo $$ >"$1/cgroup.procs"; exec perl -MIO::Socket::INET -e "$2"' \
		sh "$cgroup" "\$0 = '$workload'; $program" &
	pids+=($!)
}

echo '{ "kind": "PodList", "apiVersion": "v1", "items": [] }' >"$folder/pods.json"
"$bin/tcptracer-agent" --node-name node-1 --pods "file:$folder/pods.json" --grpc-listen "unix:$folder/agent.sock" \
	--http-listen 127.0.0.1:0 --pin-dir "$pins" 2>"$folder/agent.log" &
agent=$!
pids+=("$agent")
plugin=("$bin/kubectl-tcptracer" --server "unix:$folder/agent.sock")
for _ in $(seq 300); do
	! "${plugin[@]}" status >/dev/null 2>&1 || break
	kill -0 "$agent" 2>/dev/null || {
		cat "$folder/agent.log" >&2
		exit 1
	}
	sleep 0.1
done

serve='my $l = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die "demo: $@";
	while (my $c = $l->accept) { <$c>; print $c "x" x 4000; close $c }'
ask='my $s = IO::Socket::INET->new(PeerAddr => "10.77.0.1:8080", Timeout => 1);
	if ($s) { print $s "GET /\n"; 1 while <$s>; close $s }'
pod 1 demo web-0 web "$serve"
pod 2 demo cart-0 cart "while (1) { sleep 1; $ask }"
# Of another namespace: that the web server accepts from it is shown, what it does itself is not.
pod 3 other batch-0 batch "while (1) { sleep 2; $ask }"

echo "\$ kubectl tcptracer --namespace demo $*"
"${plugin[@]}" --namespace demo "$@"
