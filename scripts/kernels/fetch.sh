#!/usr/bin/env bash
# fetch.sh ARCH SERIES...: gets the newest stock Debian cloud kernel of each series (5.10, 6.1, 7, ...)
# and prints a line for each: its series, its version, and the folder with its vmlinuz and modules/.
#
# Debian packages only. What was fetched is kept in the cache, by version.
set -euo pipefail

arch=${1:?usage: fetch.sh ARCH SERIES...}
shift
. "$(dirname "$0")/../debian.sh"
kernels=$cache/kernels/$arch
# What the scenarios need beyond the kernel itself.
modules='veth|sch_netem'

# The newest version of a series and its package: by the version, since the names of old kernels have the
# number of their ABI instead.
newest() {
	awk -v arch="$arch" -v series="$1." '
		/^Package: / { package = $2 }
		/^Version: / && package ~ "^linux-image-[0-9].*-cloud-" arch "$" && index($2, series) == 1 {
			print $2, package
		}' "$available" | sort -V | tail -n 1
}

# unpack PACKAGE DIR: the newest kernels are split into packages, of which image has the name only.
unpack() {
	local flavour=${1#linux-image-} package into=$2.partial file
	rm -rf "$into"
	mkdir -p "$into"/{debs,modules}
	for package in linux-{image,binary,modules}-"$flavour"; do
		! grep -qxF "Package: $package" "$available" ||
			(cd "$into/debs" && apt-get download -qq "$package")
	done
	for file in "$into"/debs/*.deb; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$into/debs" --wildcards --no-anchored \
			'vmlinuz*' 'veth.ko*' 'sch_netem.ko*' 2>/dev/null || true
	done
	find "$into/debs" -type f -name 'vmlinuz*' -exec mv {} "$into/vmlinuz" \;
	find "$into/debs" -type f -name '*.ko.xz' -exec xz -d {} \;
	find "$into/debs" -type f -regextype egrep -regex ".*/($modules)\.ko" -exec mv -t "$into/modules" {} +
	[ -s "$into/vmlinuz" ] || fail "the packages of $flavour hold no vmlinuz"
	rm -r "$into/debs"
	mv "$into" "$2"
}

debian_apt "$arch"
for series; do
	read -r version package < <(newest "$series") || fail "there is no kernel $series for $arch"
	[ -d "$kernels/$version" ] || unpack "$package" "$kernels/$version"
	echo "$series $version $kernels/$version"
done
