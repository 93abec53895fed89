#!/usr/bin/env bash
# go.sh SERIES: prints the folder of a Go of this series, such as 1.26: of the one in the PATH, else of Debian's, which is
# fetched once and kept outside of the checkout.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

series=${1:?usage: go.sh SERIES, such as 1.26}
# An older one gets the version that the go.mod here wants, if its GOTOOLCHAIN says so.
if [[ $(go env GOVERSION 2>/dev/null) == "go$series"* ]]; then
	dirname "$(command -v go)"
	exit
fi

# fetch FOLDER: it is not built for a place of its own.
fetch() (
	local package
	debian_apt "$(dpkg --print-architecture)" &&
		cd "$1" && apt-get download -qq "golang-$series-go" "golang-$series-src" || exit
	for package in *.deb; do
		dpkg-deb -x "$package" . && rm "$package" || exit
	done
)

folder=$cache/go/$series
if [ ! -x "$folder/usr/lib/go-$series/bin/go" ]; then
	command -v apt-get >/dev/null 2>&1 || fail "install Go $series (https://go.dev/dl)"
	echo "go: fetching Go $series from Debian" >&2
	mkdir -p "$cache/go"
	partial=$(mktemp -d "$folder.partial.XXXX")
	trap 'rm -rf "$partial"' EXIT
	fetch "$partial" || fail "Go $series cannot be had from Debian: install it (https://go.dev/dl)"
	rm -rf "$folder"
	mv "$partial" "$folder"
fi
echo "$folder/usr/lib/go-$series/bin"
