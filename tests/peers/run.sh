#!/usr/bin/env bash
# Installs other programs, and compares the host with them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [ "${PEERS:-}" = skip ]; then
	echo 'PEERS=skip: the comparisons with other programs did not run'
	exit
fi
tests/peers/provision.sh
export PYTHONPATH=$PWD/.libtorch/site-packages:$PWD/.peers/site-packages HF_HUB_OFFLINE=1
export GOLDEN=$PWD/target/golden

python3 tests/peers/golden.py "$GOLDEN"
cargo build --release --locked --quiet -p host-nccl # again, now with the headers of CUDA and NCCL
cargo test --release --locked -p host-train --features peers --lib -- parity nccl
rm -rf target/peers
python3 tests/peers/checkpoints.py target/release/host target/peers
python3 tests/peers/metrics.py target/release/host target/peers/metrics
python3 tests/peers/tensorboard.py target/release/host target/peers/tensorboard
tests/peers/page.sh target/release/host target/peers/page
tests/peers/git_lfs.sh
python3 tests/peers/exports.py target/release/host target/peers/exports
python3 tests/peers/data.py target/release/host target/peers/data
cargo build --release --locked --quiet -p host-proto --example watch
python3 tests/peers/bridges.py target/release/host target/peers/bridges
python3 tests/peers/torchrun.py target/release/host target/peers/torchrun
python3 tests/peers/pages.py target/release/host target/peers/pages
