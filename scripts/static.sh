#!/usr/bin/env bash
# static.sh TARGET: builds the tool and its scenario tests as static binaries, to run on any system with
# that processor, into target/static/TARGET/. For another processor than this machine's it needs Debian's
# cross compiler, and gets the libraries from Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/debian.sh

target=${1:?usage: static.sh TARGET, such as x86_64-unknown-linux-gnu}
host=$(rustc -vV | sed -n 's/^host: //p')
out=target/static/$target
mkdir -p "$out"

# for_target NAME TARGET VALUE: a setting for one of the targets of this build, as cc and libbpf-sys read them.
for_target() {
	export "$1_${2//-/_}=$3"
}

# Rust looks for static libraries only where it is told to; the C compiler knows where they are.
for_target LIBBPF_SYS_LIBRARY_PATH "$host" "$(dirname "$(cc -print-file-name=libelf.a)")"
export RUSTFLAGS="-C target-feature=+crt-static"

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
	for_target CFLAGS "$target" "-I$sysroot/usr/include -I$sysroot/usr/include/$triplet"
	for_target LIBBPF_SYS_LIBRARY_PATH "$target" "$sysroot/usr/lib/$triplet"
	local linker=CARGO_TARGET_${target^^}_LINKER
	export "${linker//-/_}=$triplet-gcc" PKG_CONFIG_ALLOW_CROSS=1
}

case $target in
"$host") ;;
aarch64-*) cross arm64 aarch64-linux-gnu ;;
*) fail "cannot build for $target on $host" ;;
esac

# build NAME OPTION...: the executable NAME, which cargo builds by these options.
build() {
	local name=$1 file
	shift
	file=$(cargo "$@" --locked --release --no-default-features --features static --target "$target" \
		--message-format=json-render-diagnostics |
		jq -r --arg name "$name" 'select(.target.name? == $name).executable // empty')
	install "$file" "$out/$name"
}

build tcptracer build --bin tcptracer
build root_scenarios test --no-run --test root_scenarios
ls -l "$out"
