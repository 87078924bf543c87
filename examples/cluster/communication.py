"""Estimates how long the ranks of a data parallel training wait for each other in each step.

Example, GPT-2 with 124 million parameters on machines with 25 Gbit/s:
    python3 communication.py --parameters 124e6 --step-secs 2.0 --bandwidth 3.1e9

The model, with n ranks, gradients of S bytes in buckets, a backward pass of T_b seconds and bandwidth B:

    sum of a bucket of s bytes   t(s) = latency(n) + 2 (n - 1) / n * s / B     (ring all-reduce)
    latency(n)                   = base + hop * log2(n)
    bucket k starts              when its gradients are complete and the bucket before it is summed
    waiting                      = end of the last sum - end of the backward pass, at least 0
    step(n)                      = step(1) + waiting + jitter * step(1) * sqrt(2 ln n)

Assumptions: all ranks compute equally fast, except for normally distributed jitter, so that the slowest of n determines
the step. Gradients become complete at a constant rate during the backward pass, which takes two thirds of the step. A
tied embedding is complete last, so its sum cannot overlap with the backward pass. Communication does not slow down
computation. The last assumption is wrong if the cores that compute also communicate, as on loopback.
"""

import argparse
import math


def waiting(ranks, options):
    """Returns the seconds that a rank waits for sums that the backward pass does not hide."""
    if ranks == 1:
        return 0.0
    gradient = 4 * options.parameters
    backward = options.step_secs * 2 / 3
    embedding = gradient * options.embedding_share
    latency = options.latency + options.hop * math.log2(ranks)

    def total(size):
        return latency + 2 * (ranks - 1) / ranks * size / options.bandwidth

    hidden = gradient - embedding
    count = max(1, math.ceil(hidden / options.bucket_bytes))
    end = 0.0
    for bucket in range(1, count + 1):
        complete = backward * bucket / count
        end = max(end, complete) + total(hidden / count)
    if embedding:
        end = max(end, backward) + total(embedding)
    return max(0.0, end - backward)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=124e6)
    parser.add_argument("--step-secs", type=float, default=1.0, help="time of a step on one rank")
    parser.add_argument("--bandwidth", type=float, default=1.1e9, help="bytes per second between ranks")
    parser.add_argument("--latency", type=float, default=200e-6, help="seconds of the smallest sum")
    parser.add_argument("--hop", type=float, default=50e-6, help="seconds per doubling of the ranks")
    parser.add_argument("--bucket-bytes", type=float, default=4 * 2**20)
    parser.add_argument("--embedding-share", type=float, default=0.31, help="of the parameters")
    parser.add_argument("--jitter", type=float, default=0.01, help="standard deviation of a step's time")
    options = parser.parse_args()
    print(f"{'ranks':>6}{'step s':>10}{'waiting s':>11}{'efficiency':>12}{'bytes sent':>12}")
    for ranks in (2**power for power in range(11)):
        lost = waiting(ranks, options)
        slowest = options.jitter * options.step_secs * math.sqrt(2 * math.log(ranks))
        step = options.step_secs + lost + slowest
        sent = 2 * (ranks - 1) / ranks * 4 * options.parameters
        print(f"{ranks:>6}{step:>10.3f}{lost:>11.3f}{options.step_secs / step:>12.1%}{sent:>12.3g}")


if __name__ == "__main__":
    main()
