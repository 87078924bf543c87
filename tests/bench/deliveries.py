"""Measures the cost of pushing checkpoints to a repository during a run."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess

import alternation
from training import SHAPES, WARM, command, configuration, folder, root, run, token_files


def deliveries(rounds):
    """Measures a push. Then measures a run that writes a checkpoint every fifth step. The result is the time of a
    step while the sink's process runs, divided by the time of a step while that process is stopped. A run without a
    sink is measured in the same way: its ratio differs from 1 only by noise."""
    kept = folder / "push.json"
    print("\npush", flush=True)
    subprocess.run(
        [
            "cargo",
            "bench",
            "--quiet",
            "--locked",
            "-p",
            "hub-git",
            "--bench",
            "push",
            "--",
            "--rounds",
            str(rounds),
            "--json",
            kept,
        ],
        cwd=root,
        check=True,
    )
    groups = 20
    sizes, batch, length = SHAPES["small"][0], 8, 128
    shape = (sizes, batch, length, groups * alternation.GROUP + 1)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    # A real remote does not use the disk of this machine, so this one is in memory.
    remote = pathlib.Path("/dev/shm") / f"host-bench-{os.getpid()}.git"
    contenders = {
        "pushing": [f"hub-git:repo=file://{remote},lfs=always,trainer=true,queue=latest"],
        "nothing": [],
    }
    results = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, loaded in contenders.items():
            run(["git", "init", "--quiet", "--bare", remote])
            trained = command(config, shape, checkpoint_steps=5, plugins=loaded)
            results[who].append(alternation.Alternation(trained, WARM, groups))
            shutil.rmtree(remote)
            shutil.rmtree(folder / "runs")
    print(
        f"\na training with alternating pushes, {batch} x {length} tokens, a checkpoint every 5 steps, {rounds} rounds of {groups} times 10 steps"
    )
    report = {}
    for who, trainings in results.items():
        ratio, low, high = report[who] = alternation.mean_ratio(
            [ratio for training in trainings for ratio in training.ratios]
        )
        sending = statistics.mean(training.sending for training in trainings)
        delivered = sum(training.delivered for training in trainings)
        print(
            f"{who:28}{ratio:8.3f}x the time of a step without ({low:.3f}-{high:.3f} with 95 % confidence); sending {sending:.0%} of that time, {delivered} delivered"
        )
    return {"push": json.loads(kept.read_text()), "step_ratio": report}
