#!/usr/bin/env bash
# static.sh TARGET: builds the tool and its scenario tests as static binaries, to run on any system with
# that processor, into target/static/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: static.sh TARGET, such as x86_64-unknown-linux-gnu}
out=target/static/$target
mkdir -p "$out"

# Rust looks for static libraries only where it is told to; the C compiler knows where they are.
LIBBPF_SYS_LIBRARY_PATH=$(dirname "$(cc -print-file-name=libelf.a)")
export LIBBPF_SYS_LIBRARY_PATH RUSTFLAGS="-C target-feature=+crt-static"

# build NAME OPTION...: the executable NAME, which cargo builds by these options.
build() {
	local name=$1 file
	shift
	file=$(cargo "$@" --locked --release --features static --target "$target" \
		--message-format=json-render-diagnostics |
		jq -r --arg name "$name" 'select(.target.name? == $name).executable // empty')
	install "$file" "$out/$name"
}

build tcptracer build --bin tcptracer
build root_scenarios test --no-run --test root_scenarios
ls -l "$out"
