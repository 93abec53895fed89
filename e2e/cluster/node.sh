#!/usr/bin/env bash
# The first process of a node: makes it of the namespaces that it was started in, says so by a file, and keeps them.
#
# usage: node.sh NAME READY-FILE FOLDER [PATH…]: the node has these paths of the machine for its own, in FOLDER.
set -euo pipefail

name=$1 ready=$2 folder=$3
shift 3

ip link set lo up
if [ "$name" != outside ]; then
	echo "$name" >/proc/sys/kernel/hostname
	echo 1 >/proc/sys/net/ipv4/ip_forward
	# What the kubelet and the pods mount from here on is seen by each other, but not by the machine: it ends with the
	# node.
	mount --make-rshared /
	for path; do
		mkdir -p "$folder$path"
		mount --bind "$folder$path" "$path"
	done
	# As on two machines: agents that keep something here do not get into each other's way.
	mount -t bpf bpf /sys/fs/bpf
	mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
fi
touch "$ready"
exec sleep infinity
