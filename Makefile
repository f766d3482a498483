# Every target is one line; `make help` lists them. CARGO flags: all builds use the committed lock file.
SHELL := /bin/bash
CARGO := cargo
export CARGO_TERM_PROGRESS_WHEN ?= auto
BIN := target/release
# Static: the agent because its initramfs has no libraries, the others because a start must not wait for any. They find each
# other by directory, so hard links put all of them beside the kernel.
TARGET := x86_64-unknown-linux-gnu
STATIC := RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --locked --release --target $(TARGET)
place = mkdir -p $(BIN) && ln -f -t $(BIN) $(addprefix target/$(TARGET)/release/,$(1))

.PHONY: all help deps kernel lab-kernel build agent pull rootfs demo test check unit e2e e2e-long hostile lab-selftest lab-shell fuzz timeline bench bench-check clean

all: build pull ## the binaries and the guest kernel
help: ; @grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16
deps: ## Debian packages that are missing; asks nothing
	@tests/lab/install-packages guest-kernel-config/packages tests/lab/packages tests/rootfs/packages
kernel: deps ## the guest's kernel, cached outside the checkout
	@mkdir -p $(BIN) && ln -sf "$$(guest-kernel-config/build guest | tail -n 1)" $(BIN)/vmlinux
lab-kernel: deps ## the lab's kernel, cached too
	@guest-kernel-config/build lab >/dev/null
agent: ## the guest's PID 1, static
	@$(STATIC) -p bulkhead-agent && $(call place,bulkhead-agent)
build: kernel agent ## everything a container needs, in target/release
	@$(STATIC) -p bulkhead -p bulkhead-vmm && $(call place,bulkhead bulkhead-vmm)
pull: ## what talks to registries: dynamic, for name resolution loads libraries
	@$(CARGO) build --locked --release --manifest-path runtime/pull/Cargo.toml --target-dir target/pull
	@mkdir -p $(BIN) && ln -f -t $(BIN) target/pull/release/bulkhead-pull
rootfs: deps ## root file systems for demo and tests, from Debian packages
	@tests/rootfs/build busybox >/dev/null && tests/rootfs/build debian >/dev/null
demo: build rootfs ## a container in a kernel of its own, here or in the lab
	@tests/demo
test: check unit lab-selftest e2e hostile bench-check ## everything CI runs
check: ## formatting, lints, and the rules of ARCHITECTURE.md (tests/tidy)
	@$(CARGO) fmt --check && $(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@cd runtime/pull && $(CARGO) fmt --check && $(CARGO) clippy --locked --target-dir ../../target/pull --all-targets -- -D warnings
	@$(CARGO) test --locked -q -p bulkhead-tests --test tidy
unit: deps ## unit, property and device tests: no VM
	@$(CARGO) test --locked --workspace --exclude bulkhead-tests
	@$(CARGO) test --release --locked --manifest-path runtime/pull/Cargo.toml --target-dir target/pull
lab-selftest: lab-kernel ## that the lab is what its README promises
	@tests/lab/selftest
e2e: build pull rootfs lab-kernel ## containers in VMs, on this KVM if it can host Linux, else in the lab
	@tests/e2e/run
hostile: build rootfs lab-kernel ## guests that attack the monitor, and what is left of the host afterwards
	@tests/hostile/run
fuzz: ## every parser of hostile bytes under libFuzzer, FUZZ_SECONDS (60) each; `make unit` has a short one
	@tests/fuzz/run
timeline: build rootfs lab-kernel ## a cold start on the exact clock, instruction by instruction
	@tests/timeline-exact
bench: build rootfs lab-kernel ## starts beside those of QEMU, runc and what else is installed
	@tests/bench
bench-check: build rootfs lab-kernel ## instructions of a start and of a clone against tests/bench-baseline.json, 2 % slack
	@tests/bench-check
e2e-long: build pull rootfs lab-kernel ## the cases that take minutes on an emulated CPU: 1 GiB through a pipe, 20 containers of podman's at once
	@BULKHEAD_TEST_STREAM_MIB=1024 tests/e2e/run --include-ignored a_long_stream twenty_run_at_once
lab-shell: lab-kernel ## a shell in the lab
	@tests/lab/shell
clean: ; @$(CARGO) clean
