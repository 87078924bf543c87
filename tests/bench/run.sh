#!/usr/bin/env bash
# Trains the same model shapes with the host and with its peers, in alternating rounds. Prints medians and ratios. With
# the argument `tracker`, compares the tracker with its peers instead.
# Usage: run.sh [ROUNDS [SHAPE…]] or run.sh tracker [ROUNDS]; DEVICE=cuda:0 trains on a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tests/peers/provision.sh
export PYTHONPATH=$PWD/.libtorch/site-packages:$PWD/.peers/site-packages:$PWD/tests/peers HF_HUB_OFFLINE=1
if [ "${1:-}" = tracker ]; then
	shift
	exec python3 tests/bench/tracker.py "$@"
fi
exec python3 tests/bench/run.py "$@"
