#!/usr/bin/env bash
# setup.sh WHAT [TARGET]: installs what is missing for one of: build, demo, test, lint, bench, chart, static (for
# TARGET), image, e2e, kernels, cost. Does nothing where all is there.
# Debian and its relatives; elsewhere it names what to install.
set -euo pipefail

as_root() {
	if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# Packages whose command or file is missing.
missing=()
need_command() {
	command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2")
}
need_header() {
	[ -e "/usr/include/$1" ] || missing+=("$2")
}

need_command cc gcc
need_command make make
need_command pkg-config pkg-config
need_command clang clang
need_header libelf.h libelf-dev
need_header zlib.h zlib1g-dev
# What it takes to build for another processor, by Debian's name of it.
need_cross() {
	need_command "$1-linux-gnu-gcc" "gcc-${1/_/-}-linux-gnu"
	need_header "../$1-linux-gnu/include/stdio.h" "libc6-dev-$2-cross"
}

case "${1:?one of: build demo test lint bench chart static image e2e kernels cost}" in
build) ;;
demo)
	need_command ip iproute2
	need_command nsenter util-linux
	need_command perl perl-base
	;;
test)
	need_command ip iproute2
	need_command runc runc
	need_command setpriv util-linux
	;;
lint)
	need_command perl perl-base
	need_header bpf/bpf_helpers.h libbpf-dev
	need_cross aarch64 arm64
	;;
bench)
	need_command ip iproute2
	need_command unshare util-linux
	need_command tcplife libbpf-tools
	;;
static)
	need_command jq jq
	case ${2:-$(uname -m)} in
	"$(uname -m)"*) ;;
	aarch64-*) need_cross aarch64 arm64 ;;
	x86_64-*) need_cross x86_64 amd64 ;;
	esac
	;;
chart)
	need_command jq jq
	need_command promtool prometheus
	[ -e /usr/share/doc/python3-venv ] || python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
	;;
e2e)
	need_command busybox busybox-static
	need_command containerd containerd
	need_command ip iproute2
	need_command iptables iptables
	need_command jq jq
	need_command mount mount
	need_command nft nftables
	need_command nsenter util-linux
	need_command openssl openssl
	need_command runc runc
	[ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)
	;;
image)
	need_command buildah buildah
	need_command jq jq
	;;
cost)
	need_command column bsdextrautils
	need_command cpio cpio
	need_command jq jq
	need_command qemu-system-x86_64 qemu-system-x86
	need_command tcplife libbpf-tools
	need_command xz xz-utils
	[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing+=(busybox-static)
	;;
kernels)
	need_command column bsdextrautils
	need_command cpio cpio
	need_command ip iproute2
	need_command jq jq
	need_command qemu-system-x86_64 qemu-system-x86
	need_command qemu-system-aarch64 qemu-system-arm
	need_command xz xz-utils
	need_cross aarch64 arm64
	# The guests have no libraries for it.
	[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing+=(busybox-static)
	;;
*)
	echo "setup: $1 is none of: build demo test lint bench chart static image e2e kernels cost" >&2
	exit 2
	;;
esac

if [ ${#missing[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "setup: install these first (Debian's names): ${missing[*]}" >&2
		exit 1
	fi
	echo "setup: installing ${missing[*]}" >&2
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null 2>&1; then
	echo "setup: cargo is missing: install Rust 1.89 or later (https://rustup.rs)" >&2
	exit 1
fi
# The build formats what it generates from bpf/; a minimal Rust comes without rustfmt.
need_component() {
	"$1" --version >/dev/null 2>&1 || rustup component add "$2"
}
need_component rustfmt rustfmt
[ "$1" != lint ] || need_component cargo-clippy clippy

# A container or a minimal system may come without these two.
case $1 in
build | demo | test | bench)
	mountpoint -q /sys/kernel/tracing || as_root mount -t tracefs tracefs /sys/kernel/tracing
	mountpoint -q /sys/fs/bpf || as_root mount -t bpf bpf /sys/fs/bpf
	;;
esac
