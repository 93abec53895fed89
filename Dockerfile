# The image of the agent, the host tool and the plugin: three static binaries and the licences, nothing else.
#
#   docker buildx build --platform linux/amd64,linux/arm64 .       compiles them, on the platform that builds
#   make image                                                     takes those that scripts/static.sh has built
#
# The same commit, compilers and libraries (those of Debian 12) make the same image, either way.

# The compiler is part of what the binaries depend on.
ARG RUST=1.95.0
# `build`, or `prebuilt` for those in target/static. Buildah 1.28 wants to be told also the former.
ARG BINARIES=build

FROM --platform=$BUILDPLATFORM docker.io/library/rust:${RUST}-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY . .
RUN case $TARGETARCH in \
		amd64) target=x86_64-unknown-linux-gnu ;; \
		arm64) target=aarch64-unknown-linux-gnu ;; \
		*) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
	esac && \
	apt-get update -qq && \
	scripts/setup.sh static "$target" && \
	scripts/static.sh "$target" tcptracer tcptracer-agent kubectl-tcptracer && \
	mv "target/static/$target" /binaries

FROM scratch AS prebuilt
ARG TARGET=x86_64-unknown-linux-gnu
COPY target/static/${TARGET} /binaries

FROM ${BINARIES} AS binaries

FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="tcptracer" \
	org.opencontainers.image.description="Traces the TCP connections of a node, names the pods behind them, and serves them over gRPC" \
	org.opencontainers.image.source="https://github.com/tcptracer/tcptracer" \
	org.opencontainers.image.licenses="(Apache-2.0 OR MIT) AND (GPL-2.0-only OR BSD-2-Clause)" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}"
COPY --from=binaries /binaries/tcptracer /binaries/tcptracer-agent /binaries/kubectl-tcptracer /usr/bin/
COPY --from=binaries /binaries/licenses /licenses
# What the kernel's types take while programs are loaded goes back to the system, rather than stay with the agent: 6 MB.
ENV GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1048576
ENTRYPOINT ["/usr/bin/tcptracer-agent"]
