# The targets are the steps that CI runs. `make run` and `make test` install what they need.

SHELL := /bin/bash
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
HOST_VAR := $(shell echo '$(HOST)' | tr 'a-z-' 'A-Z_')

# Building never needs root; what is built does.
ifneq ($(shell id -u),0)
SUDO := sudo
export CARGO_TARGET_$(HOST_VAR)_RUNNER := sudo -E
endif

TARGETS := x86_64-pc-windows-gnu aarch64-apple-darwin
ARM64 := aarch64-unknown-linux-gnu

# What static and image build for.
TARGET := $(HOST)

# The programs of the image. They are built together wherever more than one is taken: cargo builds them again for another
# selection.
PROGRAMS := tcptracer tcptracer-agent kubectl-tcptracer

# What the guests of test-kernels and bench-kernels take.
define GUESTS
scripts/static.sh x86_64-unknown-linux-gnu root_scenarios guest $(PROGRAMS)
scripts/static.sh $(ARM64) root_scenarios tcptracer
endef

# The modules of the kernel core with the host tool, and of the agent; each imports only what stands to its left.
TRACER_LAYERS := clock bpf check tool
AGENT_LAYERS := newest kube,cgroup,health preflight identity fixture filter hub report api,metrics node http,server \
	args run

# The other crates, those of tests and benches included, have no list of modules.
UNLAYERED := $(addsuffix /src,event proto authority client cli agent/testing e2e) $(patsubst %/main.rs,%,\
	$(wildcard $(addsuffix /*/main.rs,agent/tests agent/benches agent/node/tests cli/tests)))

.PHONY: help demo run build test static image e2e prepare test-kernels compatibility chart lint lint-plugin \
	lint-chart bench bench-kernels man

# Helm and the tests of its templates, and the linters, from their Go modules.
HELM = PATH="$$(e2e/cluster/tools.sh helm helm-unittest):$$PATH"
LINTERS = PATH="$$(e2e/cluster/tools.sh actionlint buf):$$PATH"

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: ## install what is missing, build, and show the connections of pods on this machine (ARGS="-o json")
	@scripts/setup.sh demo
	cargo build --locked --workspace --bins
	$(SUDO) scripts/demo.sh target/debug $(or $(ARGS),--duration 5s -o wide)

run: build ## install what is missing, build, and trace (ARGS="-t -x")
	$(SUDO) target/release/tcptracer $(ARGS)

build: ## build the host tool; cargo build --release --workspace builds the agent and the plugin as well
	@scripts/setup.sh build
	cargo build --release --locked

test: ## run all tests, those that need root as root
	@scripts/setup.sh test
	cargo test --locked --workspace

lint: ## check format, imports, dependencies, protocol, workflows, lints, and that all compiles for every architecture
	@scripts/setup.sh lint
	cargo fmt --all --check
	scripts/imports.pl agent/tracer $(TRACER_LAYERS)
	scripts/imports.pl agent/node/src $(AGENT_LAYERS)
	@for crate in $(UNLAYERED); do echo "scripts/imports.pl $$crate"; scripts/imports.pl $$crate || exit; done
	scripts/deny.sh
	scripts/kernels/cost_table.sh <scripts/kernels/cost.tsv | diff docs/performance.md -
	$(LINTERS) buf lint proto
	$(LINTERS) actionlint -shellcheck= -pyflakes= .github/workflows/*.yml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@for arch in x86 arm64; do \
		echo "clang -D__TARGET_ARCH_$$arch bpf/tcptracer.bpf.c"; \
		clang -g -O2 -mcpu=v3 -target bpf -D__TARGET_ARCH_$$arch -Wall -Wextra \
			-Wno-unused-parameter -Werror -fsyntax-only bpf/tcptracer.bpf.c || exit; \
	done
	rustup target add $(ARM64)
	env CC_$(subst -,_,$(ARM64))=aarch64-linux-gnu-gcc PKG_CONFIG_ALLOW_CROSS=1 \
		CFLAGS_$(subst -,_,$(ARM64))="-idirafter /usr/include -idirafter /usr/include/$(shell cc -print-multiarch)" \
		cargo check -q --locked --workspace --target $(ARM64)

# Checking takes no linker and no objects: what C there is in dependencies is not compiled.
lint-plugin: ## check that the plugin compiles for other systems
	@scripts/setup.sh lint
	rustup target add $(TARGETS)
	@for target in $(TARGETS); do \
		echo "cargo check -p kubectl-tcptracer --target $$target"; \
		env CC_$${target//-/_}=true AR_$${target//-/_}=true \
			cargo check -q --locked -p kubectl-tcptracer --target $$target || exit; \
	done

lint-chart: ## lint, render, validate and test the chart
	@scripts/setup.sh chart
	$(HELM) scripts/chart.sh check

static: ## build the static binaries of the image, to run anywhere (TARGET=aarch64-unknown-linux-gnu)
	@scripts/setup.sh static $(TARGET)
	scripts/static.sh $(TARGET) $(PROGRAMS)

image: static ## build the image from these, as the archive target/image.tar
	@scripts/setup.sh image
	scripts/image.sh $(TARGET)

# What a cluster takes comes first: nobody should wait for an image to hear that Go is missing.
e2e: ## test on a Kubernetes cluster: that of $$KUBECONFIG, or one of two nodes that is made here
	@[ -n "$$KUBECONFIG" ] || { scripts/setup.sh e2e && e2e/cluster/tools.sh >/dev/null; }
	$(MAKE) image
	cargo build --locked -p kubectl-tcptracer -p tcptracer-e2e
	$(if $(KUBECONFIG),,$(SUDO) env PATH="$$PATH" XDG_CACHE_HOME="$${XDG_CACHE_HOME:-$$HOME/.cache}") scripts/e2e.sh $(ARGS)

chart: ## write what is generated from the chart: its README, and deploy/
	@scripts/setup.sh chart
	$(HELM) scripts/chart.sh generate

# Nothing of it needs a moment in which the machine is quiet.
prepare: ## build what test-kernels and e2e take, beside something that mostly waits
	e2e/cluster/tools.sh >/dev/null
	$(GUESTS)

test-kernels: ## run the scenarios on stock kernels under emulation (KERNELS="6.1 7" FILTER=storm)
	@scripts/setup.sh kernels
	$(GUESTS)
	scripts/kernels/run.sh $(FILTER)

compatibility: ## write docs/compatibility.md from the last run of test-kernels
	cp target/kernels/compatibility.md docs/compatibility.md

bench: ## compare the cost with an empty program and with tcplife, and measure what agent and plugin take (ARGS="--only agent")
	@scripts/setup.sh bench
	cargo build --release --locked $(PROGRAMS:%=--package=%)
	cargo bench --locked --bench cost $(if $(ARGS),-- $(ARGS))

bench-kernels: ## count what tracing costs on stock kernels, in instructions, into docs/performance.md (KERNELS="6.1" only compares)
	@scripts/setup.sh cost
	scripts/static.sh x86_64-unknown-linux-gnu guest $(PROGRAMS)
	scripts/kernels/cost.sh

man: ## write docs/tcptracer.8 from the definitions of the command line
	UPDATE_MAN=1 cargo test --locked --test cli
