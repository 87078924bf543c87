#!/usr/bin/env bash
# Run this on each machine, with the name or address of the first one, which all of them reach.
# torchrun restarts the ranks of all machines when one fails; they resume from the newest checkpoint.
set -eu
first=$1
exec ${TORCHRUN:-torchrun} --nnodes 2 --nproc-per-node 2 --max-restarts 3 \
	--rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id train \
	--no-python host run train.toml --resume auto --name train
