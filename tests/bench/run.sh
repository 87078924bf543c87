#!/usr/bin/env bash
# Trains the same shapes with the host and with its peers, in turn, and prints the table.
# Usage: run.sh [ROUNDS [SHAPE…]]; DEVICE=cuda:0 runs it on a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tests/peers/provision.sh
export PYTHONPATH=$PWD/.libtorch/site-packages:$PWD/.peers/site-packages HF_HUB_OFFLINE=1
exec python3 tests/bench/run.py "$@"
