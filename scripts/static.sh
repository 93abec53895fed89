#!/usr/bin/env bash
# static.sh TARGET NAME…: builds tcptracer, tcptracer-agent, kubectl-tcptracer, root_scenarios (the scenario tests) and guest
# (the load of bench-kernels), or some of them, as static binaries, to run on any system with that processor, into
# target/static/TARGET/. For another processor than this machine's it needs Debian's cross compiler, and gets the libraries
# from Debian.
#
# The same sources, compilers and libraries make the same binaries, wherever the checkout is.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh

[ $# -ge 2 ] || fail "usage: static.sh TARGET NAME…, such as x86_64-unknown-linux-gnu tcptracer-agent"
target=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
out=target/static/$target
mkdir -p "$out"

# for_target NAME TARGET VALUE: a setting for one of the targets of this build, as cc and libbpf-sys read them.
for_target() {
	export "$1_${2//-/_}=$3"
}

# Rust looks for static libraries only where it is told to; the C compiler knows where they are.
for_target LIBBPF_SYS_LIBRARY_PATH "$host" "$(dirname "$(cc -print-file-name=libelf.a)")"

# cross ARCH TRIPLET: the libraries of another processor, and a busybox for guests with it, by Debian's and the
# compiler's names.
cross() {
	local arch=$1 triplet=$2 sysroot=$cache/sysroot/$1 package
	if [ ! -d "$sysroot" ]; then
		rm -rf "$sysroot.partial"
		mkdir -p "$sysroot.partial/debs"
		(
			debian_apt "$arch"
			cd "$sysroot.partial/debs"
			apt-get download -qq {libelf-dev,zlib1g-dev,busybox-static}/bookworm
		)
		for package in "$sysroot.partial"/debs/*.deb; do
			dpkg-deb -x "$package" "$sysroot.partial"
		done
		mv "$sysroot.partial" "$sysroot"
	fi
	rustup target add "$target"
	for_target CC "$target" "$triplet-gcc"
	includes="-I$sysroot/usr/include -I$sysroot/usr/include/$triplet"
	for_target LIBBPF_SYS_LIBRARY_PATH "$target" "$sysroot/usr/lib/$triplet"
	local linker=CARGO_TARGET_${target^^}_LINKER
	export "${linker//-/_}=$triplet-gcc" PKG_CONFIG_ALLOW_CROSS=1
}

includes=
case $target in
"$host") ;;
x86_64-*-gnu) cross amd64 x86_64-linux-gnu ;;
aarch64-*-gnu) cross arm64 aarch64-linux-gnu ;;
*) fail "cannot build for $target on $host" ;;
esac

# Names of files get into messages of panics and of asserts.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=. --remap-path-prefix=$cargo_home=cargo"
prefixes="-ffile-prefix-map=$PWD=. -ffile-prefix-map=$cargo_home=cargo"
# For the host alike, whatever the target: what is built for it is built again when these change.
for_target CFLAGS "$host" "$prefixes"
for_target CFLAGS "$target" "${includes:+$includes }$prefixes"

# build NAMES OPTION…: builds by these options of cargo, and keeps the executables with these names.
build() {
	local names=$1
	shift
	cargo "$@" --locked --release --target "$target" --message-format=json-render-diagnostics |
		jq -r --arg names "$names" 'select(.executable? and (.target.name | IN($names | splits(" ")))) |
			"\(.target.name) \(.executable)"' |
		while read -r name file; do install -C "$file" "$out/$name"; done
}

programs=()
features=()
for name; do
	case $name in
	root_scenarios) build "$name" test --no-run --package tcptracer --test "$name" --features static ;;
	guest) build "$name" build --package tcptracer --bench "$name" --features static ;;
	tcptracer | tcptracer-agent)
		programs+=("$name")
		features=(--features tcptracer/static)
		;;
	kubectl-tcptracer) programs+=("$name") ;;
	*) fail "$name is none of: tcptracer tcptracer-agent kubectl-tcptracer root_scenarios guest" ;;
	esac
done
if [ ${#programs[@]} -gt 0 ]; then
	build "${programs[*]}" build "${programs[@]/#/--package=}" "${programs[@]/#/--bin=}" "${features[@]}"
	scripts/licenses.sh "$target" "$out/licenses"
fi
ls -l "$out"
