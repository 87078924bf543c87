"""Measures how long a step takes while other processes keep the cores busy."""

import contextlib
import os
import statistics
import subprocess
import sys

from training import SHAPES, WARM, configuration, host, peer, token_files


@contextlib.contextmanager
def neighbors(count):
    """Processes that each keep a core busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def contention(rounds):
    """A step beside busy processes: as the host is, with the spinning of idle threads set by hand to the same
    and to libgomp's own default, and Accelerate."""
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
            f"\nbeside {count} busy processes, {os.cpu_count()} cores, {batch} x {length} tokens, {rounds} rounds in turn"
        )
        for who, seconds in results.items():
            ratio = statistics.median(
                base / theirs for theirs, base in zip(seconds, results["host, GOMP_SPINCOUNT=10000"])
            )
            print(
                f"{who:28}{statistics.median(seconds):12.3f} s a step ({min(seconds):.3f}-{max(seconds):.3f}); "
                f"with GOMP_SPINCOUNT=10000 by hand it is {ratio:.3f}x"
            )
        report[count] = results
    return report
