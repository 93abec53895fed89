#!/usr/bin/env bash
# e2e.sh [OPTION-OF-THE-TESTS…]: tests the product on a Kubernetes cluster, as its users meet it (e2e/). The cluster is the
# one of $KUBECONFIG, which has the image or can pull it; else one of two nodes on this machine, which is brought up
# and taken down again (e2e/cluster/).
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=e2e/cluster/cluster.sh
log=target/e2e.log

# kubectl finds the plugin by its name.
export PATH=$PWD/target/debug:$PATH

if [ -n "${KUBECONFIG:-}" ]; then
	[ -n "${E2E_IMAGE:-}" ] || {
		echo "e2e: load or push target/image.tar so that the cluster has it (kind load image-archive target/image.tar), and" \
			"set E2E_IMAGE to its REPOSITORY:TAG" >&2
		exit 2
	}
	exec target/debug/tcptracer-e2e "$@"
fi

trap '$cluster down' EXIT
$cluster up
$cluster import target/image.tar
export E2E_CLUSTER=$PWD/$cluster E2E_PODS_IMAGE=docker.io/local/busybox:1
if ! $cluster exec target/debug/tcptracer-e2e "$@"; then
	$cluster diagnose >"$log" 2>&1 || true
	echo "e2e: what the cluster was like at the end is in $log" >&2
	exit 1
fi
