#!/usr/bin/env bash
# fetch.sh ARCH SERIES...: gets the newest stock Debian cloud kernel of each series (5.10, 6.1, 7, ...)
# and prints a line for each: its series, its version, and the folder with its vmlinuz and modules/.
#
# Debian packages only, from the mirrors this machine uses, by an APT configuration of its own: the
# machine's package lists and sources stay as they are. What was fetched is kept in the cache, by version.
set -euo pipefail

arch=${1:?usage: fetch.sh ARCH SERIES...}
shift
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer/kernels/$arch
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# What the scenarios need beyond the kernel itself.
modules='veth|sch_netem'

fail() {
	echo "kernels: $*" >&2
	exit 1
}

mirror() {
	APT_CONFIG='' apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk -v label="$1" '$1 == label { print $2; exit }'
}

configure_apt() {
	local debian security
	debian=$(mirror Debian)
	security=$(mirror Debian-Security)
	[ -n "$debian" ] && [ -n "$security" ] ||
		fail "APT knows no Debian and Debian-Security mirror: run apt-get update on a Debian system first"

	mkdir -p "$cache"/apt/{lists,archives}/partial
	: >"$cache/apt/status"
	cat >"$cache/apt/sources.list" <<-END
		deb [signed-by=$keyring] $security bullseye-security main
		deb [signed-by=$keyring] $debian bookworm main
		deb [signed-by=$keyring] $security bookworm-security main
		deb [signed-by=$keyring] $debian trixie main
		deb [signed-by=$keyring] $security trixie-security main
		deb [signed-by=$keyring] $debian trixie-backports main
	END
	cat >"$cache/apt/apt.conf" <<-END
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Dir::State "$cache/apt";
		Dir::State::status "$cache/apt/status";
		Dir::Cache "$cache/apt";
		Dir::Etc::sourcelist "$cache/apt/sources.list";
		Dir::Etc::sourceparts "-";
	END
	export APT_CONFIG=$cache/apt/apt.conf
	apt-get update -qq
}

# The newest version of a series and its package: by the version, since the names of old kernels have the
# number of their ABI instead.
newest() {
	awk -v arch="$arch" -v series="$1." '
		/^Package: / { package = $2 }
		/^Version: / && package ~ "^linux-image-[0-9].*-cloud-" arch "$" && index($2, series) == 1 {
			print $2, package
		}' "$cache/apt/available" | sort -V | tail -n 1
}

# unpack PACKAGE DIR: the newest kernels are split into packages, of which image has the name only.
unpack() {
	local flavour=${1#linux-image-} package into=$2.partial file
	rm -rf "$into"
	mkdir -p "$into"/{debs,modules}
	for package in linux-{image,binary,modules}-"$flavour"; do
		! grep -qxF "Package: $package" "$cache/apt/available" ||
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

configure_apt
apt-cache dumpavail >"$cache/apt/available"
for series; do
	read -r version package < <(newest "$series") || fail "there is no kernel $series for $arch"
	[ -d "$cache/$version" ] || unpack "$package" "$cache/$version"
	echo "$series $version $cache/$version"
done
