# shellcheck shell=bash
# Sourced: the two images of the cluster, made here, as nothing is pulled.

# blob FILE: takes it into the archive under the digest that it prints.
blob() {
	local digest
	digest=$(sha256sum "$1" | cut -d ' ' -f 1)
	mv "$1" "$archive/blobs/sha256/$digest"
	echo "sha256:$digest"
}

# descriptor TYPE DIGEST
descriptor() {
	jq -n --arg type "application/vnd.oci.image.$1" --arg digest "$2" \
		--argjson size "$(stat -c %s "$archive/blobs/sha256/${2#sha256:}")" \
		'{ mediaType: $type, digest: $digest, size: $size }'
}

# image NAME COMMAND-AS-JSON: of the one layer; prints its descriptor.
image() {
	jq -n --arg arch "$arch" --arg layer "$layer" --argjson command "$2" '{
		architecture: $arch, os: "linux",
		rootfs: { type: "layers", diff_ids: [$layer] },
		config: { Env: ["PATH=/bin"], Cmd: $command }
	}' >"$archive/config"
	jq -n --argjson config "$(descriptor config.v1+json "$(blob "$archive/config")")" \
		--argjson layer "$(descriptor layer.v1.tar "$layer")" \
		'{ schemaVersion: 2, config: $config, layers: [$layer] }' >"$archive/manifest"
	descriptor manifest.v1+json "$(blob "$archive/manifest")" |
		jq --arg name "$1" '.annotations = { "io.containerd.image.name": $name }'
}

# make_images FILE: an archive of both, which are one layer and differ in what they run: a busybox for the tests, and
# what keeps the namespaces of a pod. Each program of busybox has its own name, as a process in other images has.
make_images() {
	local archive=$state/images root=$state/root arch layer
	case $(uname -m) in
	x86_64) arch=amd64 ;;
	aarch64) arch=arm64 ;;
	*) fail "a processor that is not known: $(uname -m)" ;;
	esac
	mkdir -p "$archive/blobs/sha256" "$root"/{bin,etc,proc,sys,dev,root}
	install -d -m 1777 "$root/tmp"
	cp "$(command -v busybox)" "$root/bin/busybox"
	chroot "$root" /bin/busybox --install -s /bin
	printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$archive/layer" .
	layer=$(blob "$archive/layer")

	jq -n --argjson busybox "$(image docker.io/local/busybox:1 '["sh"]')" \
		--argjson pause "$(image docker.io/local/pause:3 '["sleep", "infinity"]')" \
		'{ schemaVersion: 2, manifests: [$busybox, $pause] }' >"$archive/index.json"
	echo '{ "imageLayoutVersion": "1.0.0" }' >"$archive/oci-layout"
	tar -C "$archive" -cf "$1" .
	rm -rf "$archive" "$root"
}

# import_images FILE: on both nodes, at the same time.
import_images() {
	local node jobs=() job
	for node in "${nodes[@]}"; do
		inside "$node" ctr --namespace k8s.io images import - <"$1" >&2 &
		jobs+=($!)
	done
	for job in "${jobs[@]}"; do
		wait "$job" || fail "a node did not take the images of $1"
	done
}
