#!/usr/bin/env bash
# cost.sh: what tracing costs a connection, in instructions of guests that run stock Debian kernels: the same in every run, but for
# a few hundred. Prints the table. After a run of all kernels docs/performance.md and scripts/kernels/cost.tsv have it; one of some
# of them (KERNELS="6.1 7") fails if something costs more than cost.tsv says.
#
# Under -icount a nanosecond of the guest is an instruction. The guests have one CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/debian.sh

read -ra kernels <<<"${KERNELS:-5.10 6.1 6.12 6.18 7}"
here=scripts/kernels
out=target/cost
static=target/static/x86_64-unknown-linux-gnu
committed=$here/cost.tsv

rm -rf "$out"
root=$out/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp}
install -m 755 "$here/cost.init" "$root/init"
cp /bin/busybox "$static"/{guest,tcptracer,tcptracer-agent,kubectl-tcptracer} "$root/bin/"
for peer in tcptracer tcplife; do cp "/usr/sbin/$peer" "$root/bin/peer-$peer"; done
for file in $(ldd /usr/sbin/{tcptracer,tcplife} | grep -o '/[^ :]*' | sort -u); do
	install -D "$(readlink -f "$file")" "$root$file"
done
clang -O2 -g -mcpu=v2 -target bpf -c agent/benches/guest/floor.bpf.c -o "$root/floor.bpf.o"
(cd "$root" && find . -mindepth 1 | cpio --quiet -o -H newc | gzip -1) >"$out/initrd"

# boot NAME FOLDER: one guest, from power on to power off. It can make random numbers from the start: until a kernel has gathered
# enough of chance, each number that a connection takes costs thousands of instructions, and when that ends is chance as well.
boot() {
	timeout 1800 qemu-system-x86_64 -accel tcg,thread=single -icount shift=0,sleep=off -cpu qemu64,+rdrand -m 1024 -smp 1 \
		-kernel "$2/vmlinuz" -initrd "$out/initrd" \
		-append "console=ttyS0 loglevel=1 panic=-1 mitigations=off ROUNDS=${ROUNDS:-5}" \
		-display none -serial "file:$out/$1.console" -monitor none -no-reboot -nic none -nodefaults \
		>"$out/$1.qemu" 2>&1 || echo "kernel $1: the guest did not end by itself" >&2
}

declare -A versions
for kernel in "${kernels[@]}"; do
	read -r _ version folder < <("$here/fetch.sh" amd64 "$kernel")
	versions[$kernel]=${version%%[-+~]*}
	while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
	boot "$kernel" "$folder" &
done
wait

# A line for each row of each kernel: series, version, row, what it adds to its base for the thread that connects, the same with all
# that user space does, and to an unrelated system call. Medians of the rounds. A base is what it is.
for kernel in "${kernels[@]}"; do
	jq -nrR --arg series "$kernel" --arg version "${versions[$kernel]}" '
		def median: sort | .[length / 2 | floor];
		[inputs | sub("\r$"; "") | fromjson? | objects | select(.row)]
		| reduce .[] as $r ({order: [], rows: {}};
			(if .rows[$r.row] then . else .order += [$r.row] end) | .rows[$r.row] += [$r])
		| .rows |= map_values({thread: map(.thread) | median, wall: map(.wall) | median, unrelated: map(.unrelated) | median})
		| .rows as $rows | .order[] as $row
		| ($row | if startswith("base") then null elif endswith("-ipv6") then "base-ipv6" elif endswith("-writes") then "base-writes"
			else "base" end) as $base
		| (if $base then $rows[$base] else {thread: 0, wall: 0, unrelated: 0} end) as $less
		| [$series, $version, $row] + ($rows[$row] | [.thread - $less.thread, .wall - $less.wall, .unrelated - $less.unrelated])
		| @tsv' "$out/$kernel.console"
done >"$out/cost.tsv"

! grep -a 'does not come to rest\|did not start' "$out"/*.console >&2 || fail "a guest was not measured as it should be"
# An idle agent has nothing attached but for cgroups, whatever that seems to cost.
for kernel in "${kernels[@]}"; do
	jq -eRn '[inputs | sub("\r$"; "") | fromjson? | objects | .attached // empty]
		| length > 0 and all(. == ["tt_cgroup_mkdir", "tt_cgroup_rmdir"])' "$out/$kernel.console" >/dev/null ||
		fail "kernel $kernel: $(grep -a attached "$out/$kernel.console") is not all that an idle agent may have attached"
done
column -t -s $'\t' "$out/cost.tsv"
expected=18
for kernel in "${kernels[@]}"; do
	rows=$(awk -v kernel="$kernel" '$1 == kernel' "$out/cost.tsv" | wc -l)
	[ "$rows" -eq "$expected" ] || fail "kernel $kernel: $rows rows, not $expected: see $out/$kernel.console"
done

if [ -z "${KERNELS:-}" ]; then
	cp "$out/cost.tsv" "$committed"
	"$here/cost_table.sh" <"$committed" >docs/performance.md
	exit
fi

# What ours costs above programs that do nothing: the base is one of two, some hundreds apart, which are alike for all rows. More by
# 300 instructions and by a twentieth is more. With writes, a twentieth of the whole connection is: the load itself varies by some
# hundredths of its millions. What costs less may be committed.
awk -F '\t' '
	NR == FNR { thread[$1, $3] = $4; wall[$1, $3] = $5; unrelated[$1, $3] = $6; next }
	function over(now, before, what) {
		if (now > before + 300 && now > before * 1.05) {
			printf "%s on %s: %d instructions %s, not %d\n", $3, $1, now, what, before
			bad = 1
		}
	}
	{ thread_now[$1, $3] = $4; wall_now[$1, $3] = $5 }
	$3 !~ /^(host|agent)/ { next }
	{ row = "floor"; sign = -1 }
	/-writes\t/ { row = "base-writes"; sign = 1 }
	{
		over($4 + sign * thread_now[$1, row], thread[$1, $3] + sign * thread[$1, row], "for the thread that connects")
		over($5 + sign * wall_now[$1, row], wall[$1, $3] + sign * wall[$1, row], "with user space")
		over($6, unrelated[$1, $3], "for an unrelated system call")
	}
	END { exit bad }' "$committed" "$out/cost.tsv" >&2 || fail "something costs more than $committed says"
