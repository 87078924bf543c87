#!/usr/bin/env bash
# On a CUDA device: parity with transformers, exact resume, bfloat16, where metrics find their inputs,
# memory, and the benchmark. They are the CPU's tests with TEST_DEVICE set. Where there is no device,
# it says so and is content; CUDA_VISIBLE_DEVICES chooses among several.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly device=cuda:0

skip() { # skip WHY
	printf 'test-gpu: SKIPPED, nothing ran on %s: %s\n' "$device" "$1"
	exit
}

# The driver's door on Linux, and within Windows.
[ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || skip 'this machine has no NVIDIA driver (no /dev/nvidiactl)'
make --no-print-directory build
tests/peers/provision.sh
export PYTHONPATH=$PWD/.libtorch/site-packages:$PWD/.peers/site-packages HF_HUB_OFFLINE=1
said=$(python3 -c "import torch; torch.zeros(1, device='$device')" 2>&1) ||
	skip "torch cannot use it: ${said##*$'\n'}"
python3 -c "import torch; print('test-gpu:', torch.cuda.get_device_name('$device'))"

export TEST_DEVICE=$device GOLDEN=$PWD/target/golden
python3 tests/peers/golden.py "$GOLDEN"
# One after another: libtorch's random numbers are one stream, and the first test loads CUDA.
cargo test --release --locked -p host-train --features peers --lib -- \
	--test-threads 1 --show-output device evaluate memory parity torch_shim
cargo test --release --locked -p host-train --test training
cargo test --release --locked -p host-tests --test it -- --test-threads 4 kill memory metric_inputs resume
DEVICE=$device tests/bench/run.sh "${ROUNDS:-3}"
