# shellcheck shell=bash
# Sourced: gets Debian packages without touching the machine's own APT configuration.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tcptracer

fail() {
	echo "${0##*/}: $*" >&2
	exit 1
}

mirror() {
	apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
		awk -v label="$1" '$1 == label { print $2; exit }'
}

# debian_apt ARCH: from here on apt-get and apt-cache are about all supported releases of Debian on ARCH, from
# the mirrors that this machine uses. What they offer is listed in $available.
debian_apt() {
	local apt=$cache/apt/$1 debian security keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	debian=$(mirror Debian)
	security=$(mirror Debian-Security)
	[ -n "$debian" ] && [ -n "$security" ] ||
		fail "APT knows no Debian and Debian-Security mirror: run apt-get update on a Debian system first"

	mkdir -p "$apt"/{lists,archives}/partial
	: >"$apt/status"
	cat >"$apt/sources.list" <<-END
		deb [signed-by=$keyring] $security bullseye-security main
		deb [signed-by=$keyring] $debian bookworm main
		deb [signed-by=$keyring] $security bookworm-security main
		deb [signed-by=$keyring] $debian trixie main
		deb [signed-by=$keyring] $security trixie-security main
		deb [signed-by=$keyring] $debian trixie-backports main
	END
	cat >"$apt/apt.conf" <<-END
		APT::Architecture "$1";
		APT::Architectures { "$1"; };
		APT::Sandbox::User "root";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Dir::State "$apt";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt";
		Dir::Etc::sourcelist "$apt/sources.list";
		Dir::Etc::sourceparts "-";
	END
	export APT_CONFIG=$apt/apt.conf
	apt-get update -qq
	available=$apt/available
	apt-cache dumpavail >"$available"
}
