"""Compares two ranks with one thread each with one process with two threads, in the host and in its peer."""

import json
import statistics
import sys

import training
from training import SHAPES, WARM, configuration, host, run, token_files

TORCHRUN = [
    sys.executable,
    "-W",
    "ignore",
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    2,
]


def distributed(rounds):
    """Measures all contenders in alternating rounds. A step has the same number of sequences everywhere."""
    sizes, batch, length, steps = SHAPES["small"]
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    whole, part = (sizes, 2 * batch, length, steps), (sizes, batch, length, steps)
    script = training.pathlib.Path(__file__).with_name("peer.py")
    arguments = [script, config, batch, length, steps + WARM, "plain"]

    def two_peers():
        printed = run([*TORCHRUN, *arguments], THREADS="1", OMP_NUM_THREADS="1")
        return json.loads(printed.splitlines()[-1])

    contenders = {
        "host, 1 rank x 2 threads": lambda: host(config, whole),
        "host, 2 ranks x 1 thread": lambda: host(config, part, more=["--nproc", "2", "--threads", "1"]),
        "accelerate, 1 x 2": lambda: training.peer(config, whole, "plain"),
        "accelerate and DDP, 2 x 1": two_peers,
    }
    results = {who: [] for who in contenders}
    for _ in range(rounds):
        for who, measure in contenders.items():
            results[who].append(statistics.median(measure()["step_secs"][WARM:]))
    print(
        f"\ntwo ranks: {sizes['n_layer']} layers, width {sizes['n_embd']}, vocabulary {sizes['vocab_size']}, "
        f"{2 * batch} x {length} tokens a step in all, f32, loopback, {rounds} alternating rounds"
    )
    print(f"{'':28}{'s a step: median (min-max)':>30}{'tokens/s':>10}")
    for who, seconds in results.items():
        median = statistics.median(seconds)
        rate = 2 * batch * length / median
        print(f"{who:28}{median:12.3f} ({min(seconds):.3f}-{max(seconds):.3f}){rate:12.0f}")
    one, two, their_one, their_two = results.values()
    ratios = {
        "host: 2 ranks relative to 1": ratio(one, two),
        "host relative to accelerate, 1 rank": ratio(their_one, one),
        "host relative to accelerate and DDP, 2 ranks": ratio(their_two, two),
    }
    for what, value in ratios.items():
        print(f"{what}: {value:.2f}x as fast")
    return {"step_secs": results, "ratios": ratios, "stalls": stalls(config, whole, part)}


def stalls(config, whole, part):
    """Measures how long a checkpoint and an evaluation of 128 sequences interrupt the training."""
    two_ranks = ["--max-eval-steps", "16", "--nproc", "2", "--threads", "1"]
    runs = {
        "1 rank x 2 threads": host(config, whole, checkpoint_steps=3, more=["--max-eval-steps", "8"]),
        "2 ranks x 1 thread": host(config, part, checkpoint_steps=3, more=two_ranks),
    }
    found = {}
    for who, measured in runs.items():
        copy, evaluation = (statistics.median(measured[name][1:]) for name in ("copy_secs", "eval_secs"))
        found[who] = {"checkpoint_copy_secs": copy, "eval_secs": evaluation}
        print(
            f"{who}: a checkpoint interrupts for {copy * 1000:.1f} ms, an evaluation for {evaluation:.2f} s"
        )
    return found


def ratio(slow, fast):
    return statistics.median(a / b for a, b in zip(slow, fast))
