"""Trains each shape with the host and with the alternatives, in alternating rounds, and prints
medians and ratios. Usage: run.py [ROUNDS [SHAPE…]]; the table is saved as target/bench/train.json.
DEVICE=cuda:0 trains on a GPU; the table is then train-cuda.json in the same folder.
"""

import json
import sys

from contention import contention
from deliveries import deliveries
from distributed import distributed
from gradient_checkpointing import gradient_checkpointing
from hosts import enter_user_namespace
from link import link
from plugin_cost import plugins
from throughput import throughput
from training import SHAPES, folder, on_cpu

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
wanted = sys.argv[2:]


def main():
    # This can start the program again, so it comes first.
    has_networks = enter_user_namespace()
    folder.mkdir(parents=True, exist_ok=True)
    report = {}
    for name, shape in SHAPES.items():
        if not wanted or name in wanted:
            report[name] = throughput(name, shape, rounds)
    if not wanted or "deep" in wanted:
        report["gradient_checkpointing"] = gradient_checkpointing(rounds)
    if on_cpu and (not wanted or "contention" in wanted):
        report["contention"] = contention(rounds)
    if not wanted or "plugins" in wanted:
        report["plugins"] = plugins(rounds)
    if on_cpu and (not wanted or "distributed" in wanted):
        report["distributed"] = distributed(rounds)
    if on_cpu and (not wanted or "link" in wanted or "distributed" in wanted):
        if has_networks:
            report["link"] = link(rounds)
        else:
            print("\nlink of 1 Gbit/s: SKIPPED, because this machine has no network namespaces")
    if not wanted or "deliveries" in wanted:
        report["deliveries"] = deliveries(rounds)
    (folder / ("train.json" if on_cpu else "train-cuda.json")).write_text(json.dumps(report, indent=1))


main()
