# The few verbs of the project. Each sets up what it needs, and skips what is there already.

CARGO_FLAGS := --release --locked

# One build for all: the binary, every plugin, the tests' own crates.
.PHONY: build
build: libtorch
	cargo build $(CARGO_FLAGS) --workspace

# Crates that the demo runs. Their dependencies have the features that they have in the whole workspace, so that
# `make test` afterwards compiles none of them again.
DEMO := host host-plugin weight-decay perplexity local-disk hub-git

.PHONY: demo
demo: libtorch ## trains a small GPT-2 on the sources of this project's dependencies
	cargo build $(CARGO_FLAGS) $(addprefix -p ,$(DEMO))
	examples/demo/run.sh

.PHONY: test
test: build ## all tests that need no outside program
	cargo test $(CARGO_FLAGS) --workspace --no-fail-fast

.PHONY: test-peers
test-peers: build ## compares with transformers and others; installs them; PEERS=skip leaves them out
	tests/peers/run.sh

.PHONY: test-gpu
test-gpu: ## the tests whose results depend on the device, and the benchmark, on cuda:0; skips aloud where there is none
	tests/gpu/run.sh

.PHONY: fuzz
fuzz: build ## fuzzes the readers of untrusted input for two minutes; SECONDS_EACH=3600 runs each of the five targets longer, KEEP=1 adds new inputs to the corpus, SEED=1 repeats what CI tries
	tests/fuzz/run.sh $(or $(SECONDS_EACH),24)

.PHONY: bench
bench: build ## training speed beside Accelerate and torch.compile, in turn, and what plugins cost; ROUNDS="5 small plugins"; ROUNDS=tracker measures the tracker
	tests/bench/run.sh $(ROUNDS)

.PHONY: check
check: libtorch ## what a change must pass before its tests: format, wording, lints
	cargo fmt --all --check
	python3 tests/wording/check.py
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets --features host-fuzz/fuzz -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items
	tests/deny.sh

.PHONY: bless
bless: build ## rewrites what is generated: the C header, the gRPC code; appends to the ABI's lock
	BLESS=1 cargo test $(CARGO_FLAGS) --workspace -- fresh

.PHONY: libtorch
libtorch:
	@host/train/provision.sh

.PHONY: deny
deny: ## licenses, sources, duplicates and advisories of the dependencies, by cargo-deny
	tests/deny.sh
