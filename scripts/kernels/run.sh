#!/usr/bin/env bash
# run.sh [FILTER]: boots stock Debian kernels under emulation, runs the root scenarios of the host tracer on
# each (those whose names contain FILTER), and prints which passed where. Fails unless all did.
#
# KERNELS="6.1 6.12-arm64 ..." chooses them. What the guests wrote stays in target/kernels.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/debian.sh

filter=${1:-}
read -ra kernels <<<"${KERNELS:-5.10 6.1 6.12 6.18 7 6.12-arm64}"
# At a time. Each has two CPUs, as has the machine on which this must end in time.
guests=${GUESTS:-2}
seconds=${SECONDS_PER_GUEST:-1800}
# A guest that prints nothing for so long hangs. The longest test takes a tenth of it.
silence=300
here=scripts/kernels
out=target/kernels

# Archives can be put one behind the other.
pack() {
	(cd "$1" && find . -mindepth 1 | cpio --quiet -o -H newc | gzip -1)
}

arch_of() {
	case $1 in
	*-arm64) echo arm64 ;;
	*) echo amd64 ;;
	esac
}

# make_root ARCH TARGET BUSYBOX: what the guests have in common: busybox and what is to be tested, the agent and real
# iproute2 with its libraries. For another processor the host tool and busybox's have to do.
make_root() {
	local root=$out/$1.root file
	mkdir -p "$root"/{bin,dev,proc,sbin,sys,tmp}
	cp "$here/init" "$root/init"
	cp "$3" "$root/bin/busybox"
	cp "target/static/$2"/{tcptracer,root_scenarios} "$root/bin/"
	if [ "$1" = amd64 ]; then
		cp "target/static/$2/tcptracer-agent" "$root/bin/"
		for file in /sbin/ip /sbin/tc $(ldd /sbin/ip /sbin/tc | grep -o '/[^ :]*' | sort -u); do
			install -D "$(readlink -f "$file")" "$root$file"
		done
	fi
	pack "$root" >"$out/$1.cpio.gz"
}

# supervise NAME PID: ends a guest that hangs. Its console says in which test.
supervise() {
	local console=$out/$1.console
	while sleep 5 && kill -0 "$2" 2>/dev/null; do
		if [ $(($(date +%s) - $(stat -c %Y "$console"))) -gt "$silence" ]; then
			echo "kernel $1: the guest has printed nothing for $silence s" >&2
			kill "$2"
		fi
	done
}

# boot NAME ARCH DIR: one guest, from power on to power off.
boot() {
	local name=$1 arch=$2 dir=$3 console modules=$out/$1.modules run=$filter guest
	local -a qemu
	case $arch in
	amd64) qemu=(qemu-system-x86_64) console=ttyS0 ;;
	# Emulating another processor is slow: the programs load, attach, and report a connection.
	arm64) qemu=(qemu-system-aarch64 -M virt -cpu cortex-a72) console=ttyAMA0 run=${filter:-closes_first} ;;
	esac
	mkdir -p "$modules/modules"
	cp "$dir"/modules/* "$modules/modules/"
	cat "$out/$arch.cpio.gz" <(pack "$modules") >"$out/$name.initrd"
	timeout "$seconds" "${qemu[@]}" -accel tcg,thread=multi -m 1536 -smp 2 \
		-kernel "$dir/vmlinuz" -initrd "$out/$name.initrd" \
		-append "console=$console loglevel=1 panic=-1 FILTER=$run" \
		-display none -serial "file:$out/$name.console" -monitor none -no-reboot -nic none -nodefaults \
		>"$out/$name.qemu" 2>&1 &
	guest=$!
	supervise "$name" "$guest" &
	wait "$guest" || echo "kernel $name: the guest did not end by itself" >&2
	rm "$out/$name.initrd"
}

rm -rf "$out"
mkdir -p "$out"
declare -A folder
for kernel in "${kernels[@]}"; do
	read -r _ version "folder[$kernel]" < <("$here/fetch.sh" "$(arch_of "$kernel")" "${kernel%-arm64}")
	echo "$kernel $version" >>"$out/kernels"
done
if [[ ${kernels[*]} == *-arm64* ]]; then
	make_root arm64 aarch64-unknown-linux-gnu "$cache/sysroot/arm64/bin/busybox"
fi
make_root amd64 x86_64-unknown-linux-gnu /bin/busybox
for kernel in "${kernels[@]}"; do
	while [ "$(jobs -pr | wc -l)" -ge "$guests" ]; do wait -n; done
	echo "booting $kernel" >&2
	boot "$kernel" "$(arch_of "$kernel")" "${folder[$kernel]}" &
done
wait
FILTER=$filter "$here/report.sh"
