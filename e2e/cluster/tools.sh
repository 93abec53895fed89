#!/usr/bin/env bash
# tools.sh [NAME…]: builds the named tools, by default all, and prints the folder that they are in. What is built
# already stays: a new version of Go or of anything in a go.mod is another folder.
set -euo pipefail
cd "$(dirname "$0")/tools"

fail() {
	echo "tools: $*" >&2
	exit 1
}

# name, folder of the go.mod, package
tools="
etcd                    .    go.etcd.io/etcd/server/v3
kube-apiserver          .    k8s.io/kubernetes/cmd/kube-apiserver
kube-controller-manager .    k8s.io/kubernetes/cmd/kube-controller-manager
kube-scheduler          .    k8s.io/kubernetes/cmd/kube-scheduler
kube-proxy              .    k8s.io/kubernetes/cmd/kube-proxy
kubelet                 .    k8s.io/kubernetes/cmd/kubelet
kubectl                 .    k8s.io/kubernetes/cmd/kubectl
helm                    helm helm.sh/helm/v4/cmd/helm
helm-unittest           helm github.com/helm-unittest/helm-unittest/cmd/helm-unittest
"

# Nothing around decides what is built.
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off
go_version=$(go env GOVERSION 2>/dev/null) ||
	fail 'install Go 1.26 to build the tools of the test cluster, or set $KUBECONFIG to use a cluster of your own'
[[ $go_version == go1.26* ]] || fail "Kubernetes $go_version cannot build: install Go 1.26, or set GOTOOLCHAIN=go1.26.8"

key=$({
	go env GOVERSION GOOS GOARCH
	cat ../tools.sh go.mod go.sum helm/go.mod helm/go.sum
} | sha256sum | cut -c 1-16)
bin=${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer/tools/$key
mkdir -p "$bin"

version() {
	go list -m -f '{{.Version}}' "$1"
}

# What the release builds of Kubernetes and Helm set: clients and charts ask for it.
version_flags() {
	local version major minor variable
	case $1 in
	k8s.io/kubernetes/*)
		version=$(version k8s.io/kubernetes)
		IFS=. read -r major minor _ <<<"${version#v}"
		for variable in gitVersion="$version" gitMajor="$major" gitMinor="$minor" gitTreeState=archive; do
			printf ' -X k8s.io/client-go/pkg/version.%s -X k8s.io/component-base/version.%s' "$variable" "$variable"
		done
		;;
	helm.sh/*) printf ' -X helm.sh/helm/v4/internal/version.version=%s' "$(version helm.sh/helm/v4)" ;;
	esac
}

build() (
	local name=$1 package=$3
	cd "$2"
	echo "tools: building $name" >&2
	go build -trimpath -ldflags "-s -w$(version_flags "$package")" -o "$bin/$name.partial" "$package" >&2
	mv "$bin/$name.partial" "$bin/$name"
)

exec 9>"$bin/.lock"
flock 9
[ $# -gt 0 ] || set -- $(awk '{ print $1 }' <<<"$tools")
for name; do
	[ ! -x "$bin/$name" ] || continue
	tool=$(awk -v name="$name" '$1 == name' <<<"$tools")
	[ -n "$tool" ] || fail "there is no tool $name"
	build $tool
done
echo "$bin"
