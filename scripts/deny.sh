#!/usr/bin/env bash
# deny.sh: checks the crates that we depend on: their licences, versions and where they come from (deny.toml). cargo-deny is
# built once and kept outside of the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
folder=${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer/tools/cargo-deny-$version

# Made beside its place and moved there: what is there is complete. Without optimization it is built in half the time, and
# checks in seconds. Advisories, which we do not check here, are what its features are for.
if [ ! -x "$folder/bin/cargo-deny" ]; then
	echo "deny: building cargo-deny $version" >&2
	mkdir -p "${folder%/*}"
	partial=$(mktemp -d "$folder.partial.XXXX")
	trap 'rm -rf "$partial"' EXIT
	cargo install --quiet --locked --debug --no-default-features --version "$version" --no-track --root "$partial" cargo-deny
	rm -rf "$folder"
	mv "$partial" "$folder"
fi
exec "$folder/bin/cargo-deny" --workspace --locked check licenses bans sources
