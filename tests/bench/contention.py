"""Measures how long a step takes while other processes keep the cores busy."""

import contextlib
import os
import statistics
import subprocess
import sys

from training import SHAPES, WARM, configuration, host, peer, token_files


@contextlib.contextmanager
def neighbors(count):
    """Runs processes that each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def contention(rounds):
    """Measures a step while other processes are busy. Compares Accelerate with the host. The host runs with
    three spin counts of idle threads: the host's default, the same value set explicitly, and libgomp's default."""
    sizes, batch, length, _ = SHAPES["small"]
    shape = (sizes, batch, length, 12)
    token_files(sizes["vocab_size"])
    config = configuration("small", sizes)
    contenders = {
        "host": lambda: host(config, shape),
        "host, GOMP_SPINCOUNT=10000": lambda: host(config, shape, {"GOMP_SPINCOUNT": "10000"}),
        "host, GOMP_SPINCOUNT=300000": lambda: host(config, shape, {"GOMP_SPINCOUNT": "300000"}),
        "accelerate": lambda: peer(config, shape, "plain"),
    }
    report = {}
    for count in (0, 2, 6):
        results = {who: [] for who in contenders}
        with neighbors(count):
            for _ in range(rounds):
                for who, measure in contenders.items():
                    results[who].append(statistics.median(measure()["step_secs"][WARM:]))
        print(
            f"\nwith {count} busy processes, {os.cpu_count()} cores, {batch} x {length} tokens, {rounds} alternating rounds"
        )
        for who, seconds in results.items():
            ratio = statistics.median(
                base / theirs for theirs, base in zip(seconds, results["host, GOMP_SPINCOUNT=10000"])
            )
            print(
                f"{who:28}{statistics.median(seconds):12.3f} s a step ({min(seconds):.3f}-{max(seconds):.3f}); "
                f"{ratio:.3f}x as fast as with GOMP_SPINCOUNT=10000"
            )
        report[count] = results
    return report
