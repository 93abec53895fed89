#!/usr/bin/env bash
# image.sh TARGET: puts the static binaries for TARGET that scripts/static.sh has built into the image, as the OCI archive
# target/image.tar. Of the same binaries and commit it is the same image.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: image.sh TARGET, such as x86_64-unknown-linux-gnu}
version=$(cargo metadata --locked --no-deps --format-version 1 |
	jq -r '.packages[] | select(.name == "tcptracer").version')
name=ghcr.io/tcptracer/tcptracer:$version
case $target in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*)
	echo "image: no image for $target" >&2
	exit 1
	;;
esac

# A store of its own, so that no image of this name is replaced on this machine.
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
in_store() {
	buildah --storage-driver vfs --root "$store/root" --runroot "$store/run" "$@"
}
in_store build --quiet --isolation chroot --platform "linux/$arch" --timestamp "$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
	--build-arg BINARIES=prebuilt --build-arg "TARGET=$target" --build-arg "VERSION=$version" \
	--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)" --tag "$name" . >/dev/null
rm -f target/image.tar
in_store push --quiet "$name" "oci-archive:target/image.tar:$name"
echo "target/image.tar: $name for $arch, $(stat -c %s target/image.tar) bytes"
