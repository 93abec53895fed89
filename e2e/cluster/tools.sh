#!/usr/bin/env bash
# tools.sh [NAME…]: builds the named tools, by default those of the cluster, and prints the folders that they are in, as in a
# PATH. What is built already stays: a new version of Go or of anything in its go.mod is another folder.
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
actionlint              lint github.com/rhysd/actionlint/cmd/actionlint
buf                     lint github.com/bufbuild/buf/cmd/buf
"

# Nothing around decides what is built.
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off
# Kubernetes cannot be built by others.
path=$(../../../scripts/go.sh 1.26) || fail 'without Go there are no tools; make e2e also takes a cluster of your own, by $KUBECONFIG'
export PATH=$path:$PATH

# folder_of FOLDER-OF-THE-GO.MOD: where what is built from it is kept.
folder_of() (
	cd "$1"
	key=$({
		go env GOVERSION GOOS GOARCH
		cat "$OLDPWD/../tools.sh" go.mod go.sum
	} | sha256sum | cut -c 1-16)
	echo "${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer/tools/$key"
)

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

[ $# -gt 0 ] || set -- $(awk '$2 != "lint" { print $1 }' <<<"$tools")
folders=()
for name; do
	tool=$(awk -v name="$name" '$1 == name' <<<"$tools")
	[ -n "$tool" ] || fail "there is no tool $name"
	bin=$(folder_of "$(awk '{ print $2 }' <<<"$tool")")
	[[ " ${folders[*]} " == *" $bin "* ]] || folders+=("$bin")
	mkdir -p "$bin"
	exec 9>"$bin/.lock"
	flock 9
	[ -x "$bin/$name" ] || build $tool
done
(
	IFS=:
	echo "${folders[*]}"
)
