"""Measures how much of the communication between two hosts is hidden by the backward pass. The hosts are network
namespaces of this machine with a core each, and a link of 1 Gbit/s connects them."""

import json
import pathlib
import statistics
import sys
import tempfile

from hosts import two_hosts
from training import WARM, command, configuration, root, token_files

# The tied embedding is complete last, so its sum cannot overlap. Here it is 8 % of the gradient.
SIZES = dict(n_layer=8, n_embd=256, n_head=4, vocab_size=2048, n_positions=256)
BATCH, LENGTH, STEPS = 8, 256, 12
BUCKET = 4 << 20
PORT = 29710


def gradient_bytes():
    """Returns the bytes of the gradient, and of the embedding in it."""
    width, layers = SIZES["n_embd"], SIZES["n_layer"]
    embedding = SIZES["vocab_size"] * width
    positions = SIZES["n_positions"] * width
    block = 12 * width * width + 13 * width
    return 4 * (embedding + positions + layers * block + 2 * width), 4 * embedding


def together(hosts, words, variables):
    """Runs a command on both hosts at the same time. Returns the lines of JSON that each printed."""
    with tempfile.TemporaryDirectory() as logs:
        started = []
        for rank, place in enumerate(hosts):
            log = pathlib.Path(logs) / f"{rank}.log"
            started.append((place.start(words(rank), log, root, **variables(rank)), log))
        printed = []
        for process, log in started:
            if process.wait(600) != 0:
                sys.exit(f"error: a rank ended with {process.returncode}: {log.read_text()[-2000:]}")
            lines = log.read_text().splitlines()
            # Warnings of torch begin with a bracket, too.
            printed.append([json.loads(line) for line in lines if line.startswith(('{"', "[0.", "[1."))])
        return printed


def host_step(hosts, config, alone=False, more=()):
    """Returns the seconds of a step of the host. `alone`: each host trains for itself."""

    def variables(rank):
        ranks = dict(RANK=rank, WORLD_SIZE=2, MASTER_ADDR=hosts[0].address, MASTER_PORT=PORT)
        return {"OMP_NUM_THREADS": 1} if alone else {"OMP_NUM_THREADS": 1, **ranks}

    # All ranks of a training have the same command line.
    shape = (SIZES, BATCH, LENGTH, STEPS)
    shared = command(config, shape, more=["--threads", "1", *more])
    own = [command(config, shape, more=["--threads", "1"]) for _ in hosts]
    printed = together(hosts, lambda rank: own[rank] if alone else shared, variables)
    values = [event.get("values", {}) for event in printed[0]]
    return statistics.median([each["step_secs"] for each in values if "step_secs" in each][WARM:])


def sums(hosts, buckets):
    """Returns the seconds of the sums of a step, without any computation."""
    script = pathlib.Path(__file__).with_name("sums.py")
    words = [sys.executable, script, 12, *buckets]

    def variables(rank):
        ranks = dict(RANK=rank, WORLD_SIZE=2, MASTER_ADDR=hosts[0].address, MASTER_PORT=PORT)
        return {"OMP_NUM_THREADS": 1, "GLOO_SOCKET_IFNAME": "cable", **ranks}

    printed = together(hosts, lambda _: words, variables)
    return statistics.median(printed[0][-1][WARM:])


def link(rounds):
    """Measures a step without communication, with sums during the backward pass, and with sums after it, and the sums
    without computation, in alternating rounds."""
    token_files(SIZES["vocab_size"])
    config = configuration("link", SIZES)
    total, embedding = gradient_bytes()
    rest = total - embedding
    buckets = [BUCKET] * (rest // BUCKET) + [rest % BUCKET, embedding]
    measured = {"alone": [], "during": [], "after": [], "sums": []}
    # A single bucket is complete at the end of the backward pass.
    after = ["--bucket-cap-mb", "1000"]
    with tempfile.TemporaryDirectory() as folder, two_hosts(pathlib.Path(folder)) as hosts:
        for place in hosts:
            place.run(*"tc qdisc add dev cable root tbf rate 1gbit burst 128kb latency 50ms".split())
        for _ in range(rounds):
            measured["alone"].append(host_step(hosts, config, alone=True))
            measured["during"].append(host_step(hosts, config))
            measured["after"].append(host_step(hosts, config, more=after))
            measured["sums"].append(sums(hosts, buckets))
    hidden = statistics.median(
        1 - (during - alone) / (after - alone)
        for alone, during, after in zip(
            *(measured[name] for name in ("alone", "during", "after")), strict=True
        )
    )
    medians = {name: statistics.median(seconds) for name, seconds in measured.items()}
    print(
        f"\nlink of 1 Gbit/s: {SIZES['n_layer']} layers, width {SIZES['n_embd']}, embedding "
        f"{embedding / total:.0%} of the gradient's {total / 1e6:.1f} MB, {rounds} alternating rounds\n"
        f"a step of one rank {medians['alone']:.3f} s; of two, with sums after the backward pass "
        f"{medians['after']:.3f} s, with sums during it {medians['during']:.3f} s: {hidden:.0%} of the communication "
        f"is hidden; the sums without computation {medians['sums']:.3f} s"
    )
    return {**measured, "hidden": hidden}
