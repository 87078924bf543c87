#!/usr/bin/env bash
# Tests on a CUDA device. They test parity with transformers, exact resume, bfloat16, the device of metric inputs, and
# memory. The benchmark also runs. The same tests run on the CPU by default; TEST_DEVICE makes them use the device.
# Without a device, prints that the tests were skipped and exits with 0. CUDA_VISIBLE_DEVICES selects one of several
# devices.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly device=cuda:0

skip() { # skip WHY
	printf 'test-gpu: SKIPPED, nothing ran on %s: %s\n' "$device" "$1"
	exit
}

# The driver's device files: the first exists on Linux, and the second under WSL on Windows.
[ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || skip 'this machine has no NVIDIA driver (no /dev/nvidiactl)'
make --no-print-directory build
tests/peers/provision.sh
export PYTHONPATH=$PWD/.libtorch/site-packages:$PWD/.peers/site-packages HF_HUB_OFFLINE=1
said=$(python3 -c "import torch; torch.zeros(1, device='$device')" 2>&1) ||
	skip "torch cannot use it: ${said##*$'\n'}"
python3 -c "import torch; print('test-gpu:', torch.cuda.get_device_name('$device'))"

export TEST_DEVICE=$device GOLDEN=$PWD/target/golden
python3 tests/peers/golden.py "$GOLDEN"
# The tests run sequentially, because libtorch has one random number generator and the first test loads CUDA.
cargo test --release --locked -p host-train --features peers --lib -- \
	--test-threads 1 --show-output device evaluate memory parity torch_shim
cargo test --release --locked -p host-train --test training
cargo test --release --locked -p host-tests --test it -- --test-threads 4 kill memory metric_inputs resume
DEVICE=$device tests/bench/run.sh "${ROUNDS:-3}"
