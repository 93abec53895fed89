#!/usr/bin/env bash
# run.sh [FILTER]: boots stock Debian kernels under emulation, runs the root scenarios of the host tracer on
# each (those whose names contain FILTER), and prints which passed where. Fails unless all did.
#
# SERIES="5.10 6.1 ..." chooses the kernels. What the guests wrote stays in target/kernels.
set -euo pipefail
cd "$(dirname "$0")/../.."

filter=${1:-}
read -ra series <<<"${SERIES:-5.10 6.1 6.12 6.18 7}"
# At a time. Each has two CPUs, as has the machine on which this must end in time.
guests=${GUESTS:-2}
seconds=${SECONDS_PER_GUEST:-1500}
static=target/static/$(rustc -vV | sed -n 's/^host: //p')
here=scripts/kernels
out=target/kernels

# The root of the guests: busybox, iproute2 with its libraries, and what is to be tested.
make_root() {
	local file root=$out/root
	mkdir -p "$root"/{bin,dev,proc,sbin,sys,tmp}
	cp "$here/init" "$root/init"
	cp "$(command -v busybox)" "$static"/{tcptracer,root_scenarios} "$root/bin/"
	for file in /sbin/ip /sbin/tc $(ldd /sbin/ip /sbin/tc | grep -o '/[^ :]*' | sort -u); do
		install -D "$(readlink -f "$file")" "$root$file"
	done
	pack "$root" >"$out/root.cpio.gz"
}

# Archives can be put one behind the other.
pack() {
	(cd "$1" && find . -mindepth 1 | cpio --quiet -o -H newc | gzip -1)
}

# boot SERIES DIR: one guest, from power on to power off.
boot() {
	local name=$1 modules=$out/$1.root
	mkdir -p "$modules/modules"
	cp "$2"/modules/* "$modules/modules/"
	cat "$out/root.cpio.gz" <(pack "$modules") >"$out/$name.initrd"
	timeout "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -m 1536 -smp 2 \
		-kernel "$2/vmlinuz" -initrd "$out/$name.initrd" \
		-append "console=ttyS0 loglevel=1 panic=-1 FILTER=$filter" \
		-display none -serial "file:$out/$name.console" -monitor none -no-reboot -nic none -nodefaults \
		>"$out/$name.qemu" 2>&1 || echo "kernel $1: the guest did not end by itself" >&2
	rm "$out/$name.initrd"
}

rm -rf "$out"
mkdir -p "$out"
make_root
"$here/fetch.sh" amd64 "${series[@]}" >"$out/kernels"
while read -r name version dir; do
	while [ "$(jobs -pr | wc -l)" -ge "$guests" ]; do wait -n; done
	echo "booting $version" >&2
	boot "$name" "$dir" &
done <"$out/kernels"
wait
"$here/report.sh"
