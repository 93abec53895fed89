#!/usr/bin/env bash
# licenses.sh TARGET FOLDER: writes the licences of all that is in the static binaries for TARGET: ours, and those of the
# crates and of the C libraries, each text once, with whose it is.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: licenses.sh TARGET FOLDER}
out=${2:?usage: licenses.sh TARGET FOLDER}
rm -rf "$out"
mkdir -p "$out"
cp LICENSE-APACHE LICENSE-MIT "$out/"
cp bpf/LICENSE.md "$out/LICENSE-BPF.md"

# The text comes after the names of those whose it is.
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT
keep() {
	local sum
	sum=$(sha256sum <"$2" | cut -d ' ' -f 1)
	echo "$1" >>"$texts/$sum.names"
	cat "$2" >"$texts/$sum.text"
}

cargo tree --locked --package tcptracer --package tcptracer-agent --package kubectl-tcptracer --edges normal \
	--features tcptracer/static --target "$target" --prefix none --format '{p}' | awk '$1 != "" { print $1, $2 }' | sort -u >"$texts/crates"
cargo metadata --locked --format-version 1 --filter-platform "$target" |
	jq -r '.packages[] | select(.source) | "\(.name) v\(.version) \(.manifest_path | rtrimstr("/Cargo.toml")) \(.license)"' |
	while read -r name version folder license; do
		grep -qxF "$name $version" "$texts/crates" || continue
		mapfile -d '' files < <(find "$folder" -maxdepth 2 -type f -regextype egrep ! -name '*.rs' \
			-iregex '.*/(licen[cs]e|copying|notice|unlicense)[^/]*' -print0 | sort -z)
		# Some bring none; their names are told all the same.
		for file in "${files[@]:-/dev/null}"; do keep "$name ${version#v} ($license)" "$file"; done
	done
for library in libelf-dev zlib1g-dev libc6; do
	keep "$library (Debian)" "/usr/share/doc/$library/copyright"
done

for names in "$texts"/*.names; do
	printf '%s\n' "================================================================================"
	sort -u "$names"
	printf '%s\n\n' "--------------------------------------------------------------------------------"
	cat "${names%.names}.text"
	echo
done >"$out/THIRD-PARTY"
