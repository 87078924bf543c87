# The project's commands. Each command first installs its missing requirements.

CARGO_FLAGS := --release --locked

# Builds everything: the binary, every plugin, and the crates for tests.
.PHONY: build
build: libtorch
	cargo build $(CARGO_FLAGS) --workspace

# The crates that the demo uses. If they are built together, cargo enables the same features of their dependencies as
# for the whole workspace, so a later `make test` does not recompile the dependencies.
DEMO := host host-plugin weight-decay perplexity local-disk hub-git

.PHONY: demo
demo: libtorch ## train a small GPT-2 on the sources of this project's dependencies
	cargo build $(CARGO_FLAGS) $(addprefix -p ,$(DEMO))
	examples/demo/run.sh

.PHONY: test
test: build ## run all tests that need no other programs
	cargo test $(CARGO_FLAGS) --workspace --no-fail-fast

.PHONY: test-peers
test-peers: build ## compare with transformers and others, which are installed first; PEERS=skip skips the comparisons
	tests/peers/run.sh

.PHONY: test-gpu
test-gpu: ## run the tests that depend on the device, and the benchmark, on cuda:0; skips with a message if the machine has no GPU
	tests/gpu/run.sh

.PHONY: fuzz
fuzz: build ## fuzz the parsers of untrusted input for two minutes; SECONDS_EACH=3600 runs each of the five targets longer, KEEP=1 adds new inputs to the corpus, SEED=1 uses the inputs of CI
	tests/fuzz/run.sh $(or $(SECONDS_EACH),24)

.PHONY: bench
bench: build ## compare the training speed with Accelerate and torch.compile, and measure the cost of plugins; ROUNDS="5 small plugins" selects five rounds and two shapes; ROUNDS=tracker measures the tracker
	tests/bench/run.sh $(ROUNDS)

.PHONY: check
check: libtorch ## check format, wording, lints and documentation
	cargo fmt --all --check
	python3 tests/wording/check.py
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets --features host-fuzz/fuzz -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items
	tests/deny.sh

.PHONY: bless
bless: build ## regenerate the C header and the gRPC code, and append new entries to abi.lock
	BLESS=1 cargo test $(CARGO_FLAGS) --workspace -- fresh

.PHONY: libtorch
libtorch:
	@host/train/provision.sh

.PHONY: deny
deny: ## check licenses, sources, duplicates and advisories of the dependencies with cargo-deny
	tests/deny.sh
