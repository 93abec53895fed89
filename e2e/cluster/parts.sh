# shellcheck shell=bash
# Sourced: the parts of the cluster. `run_PART NODE` says by $command how each is run.

run_etcd() {
	# Nobody needs this cluster after a crash of the machine.
	command=(etcd --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
		--listen-peer-urls http://127.0.0.1:2380)
}

run_apiserver() {
	command=(kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "$(address_of node1)"
		--service-cluster-ip-range "$services" --allow-privileged
		--authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction
		--client-ca-file "$certs/ca.crt"
		--tls-cert-file "$certs/apiserver.crt" --tls-private-key-file "$certs/apiserver.key"
		--kubelet-certificate-authority "$certs/ca.crt"
		--kubelet-client-certificate "$certs/apiserver-kubelet-client.crt"
		--kubelet-client-key "$certs/apiserver-kubelet-client.key"
		--kubelet-preferred-address-types InternalIP
		--service-account-issuer https://kubernetes.default.svc
		--service-account-key-file "$certs/service-accounts.pub"
		--service-account-signing-key-file "$certs/service-accounts.key")
}

run_controller_manager() {
	command=(kube-controller-manager --kubeconfig "$state/controller-manager.kubeconfig" --leader-elect=false
		--use-service-account-credentials --root-ca-file "$certs/ca.crt"
		--service-account-private-key-file "$certs/service-accounts.key")
}

run_scheduler() {
	command=(kube-scheduler --kubeconfig "$state/scheduler.kubeconfig" --leader-elect=false)
}

# It lives in the node's own /run/containerd and /var/lib/containerd, as on any node.
run_containerd() {
	local cni=$state/$1/cni
	mkdir -p "$cni"
	# Each pod is routed to. Behind a bridge, what pods of one node answer each other through a Service would go past
	# the node's rules, unless the machine has br_netfilter.
	cat >"$cni/pods.conflist" <<-END
		{
		  "cniVersion": "0.4.0",
		  "name": "pods",
		  "plugins": [
		    { "type": "ptp", "ipam": {
		      "type": "host-local", "ranges": [[{ "subnet": "$(pods_of "$1")" }]], "routes": [{ "dst": "0.0.0.0/0" }]
		    } },
		    { "type": "portmap", "capabilities": { "portMappings": true } }
		  ]
		}
	END
	cat >"$state/$1/containerd.toml" <<-END
		version = 2
		# Only makes a folder in /opt.
		disabled_plugins = ["io.containerd.internal.v1.opt"]
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "docker.io/local/pause:3"
		  netns_mounts_under_state_dir = true
		  # A container or a small machine may not allow these two.
		  restrict_oom_score_adj = true
		  disable_hugetlb_controller = true
		[plugins."io.containerd.grpc.v1.cri".cni]
		  bin_dir = "/usr/lib/cni"
		  conf_dir = "$cni"
	END
	command=(containerd --config "$state/$1/containerd.toml" --log-level warn)
}

run_kubelet() {
	local root=/
	[ "$1" != node2 ] || root=/$node2_cgroup
	cat >"$state/$1/kubelet.yaml" <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication:
		  anonymous: { enabled: false }
		  webhook: { enabled: true }
		  x509: { clientCAFile: $certs/ca.crt }
		# Rights that change count at once.
		authorization: { mode: Webhook, webhook: { cacheAuthorizedTTL: 1s, cacheUnauthorizedTTL: 1s } }
		tlsCertFile: $certs/kubelet-$1.crt
		tlsPrivateKeyFile: $certs/kubelet-$1.key
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		cgroupDriver: cgroupfs
		cgroupRoot: $root
		# The machine is what it is: its cgroups, its swap, its disk.
		failCgroupV1: false
		failSwapOn: false
		evictionHard: { memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1% }
		imageGCHighThresholdPercent: 100
		resolvConf: ""
	END
	command=(kubelet --config "$state/$1/kubelet.yaml" --kubeconfig "$state/$1.kubeconfig"
		--hostname-override "$1" --node-ip "$(address_of "$1")")
}

run_proxy() {
	cat >"$state/$1/proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		hostnameOverride: $1
		clusterCIDR: $all_pods
		clientConnection: { kubeconfig: $state/proxy.kubeconfig }
		# These settings are the machine's, not the node's.
		conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }
	END
	command=(kube-proxy --config "$state/$1/proxy.yaml")
}

# What is on every node, and what on node1 alone.
node_parts="containerd kubelet proxy"
cluster_parts="etcd apiserver controller-manager scheduler"

# set_part PART [NODE]: $part, the name that its log has, and $node, or says what is wrong.
set_part() {
	node=${2-}
	if [[ " $cluster_parts " == *" $1 "* ]]; then
		node=${node:-node1} part=$1
		[ "$node" = node1 ] || fail "$1 is on node1 only"
	elif [[ " $node_parts " == *" $1 "* ]]; then
		[[ " ${nodes[*]} " == *" $node "* ]] || fail "$1 of which node: ${nodes[*]}?"
		part=$1-$node
	else
		fail "there is no part $1, but: $cluster_parts $node_parts"
	fi
}

start_part() {
	local part node command
	set_part "$@"
	! alive "$part" || fail "$part is running already"
	"run_${1//-/_}" "$node"
	launch "$part" nsenter --target "$(<"$state/pid/$node")" --net --mount --uts -- "${command[@]}"
}

# Whether it serves what the others ask of it.
answers() {
	local node=$2 port
	case $1 in
	apiserver)
		kubectl get --raw /readyz
		return
		;;
	containerd)
		inside "$node" ctr version
		return
		;;
	etcd) port=2379 ;;
	controller-manager) port=10257 ;;
	scheduler) port=10259 ;;
	kubelet) port=10250 ;;
	proxy) port=10256 ;;
	esac
	inside "$node" bash -c ": </dev/tcp/127.0.0.1/$port"
}

await_part() {
	local part node
	set_part "$@"
	wait_for 60 "$part" answers "$1" "$node"
}

stop_part() {
	local part node
	set_part "$@"
	alive "$part" || fail "$part is not running"
	stop_process "$part"
}
