"""Sums gradients over the ranks without computing anything, as torch.distributed does it in Python.

Usage: sums.py REPEATS BYTES…
The environment is that of a rank. Prints one line of JSON: the seconds of each repeat.
"""

import json
import sys
import time

import torch
import torch.distributed as dist

repeats, sizes = int(sys.argv[1]), [int(size) for size in sys.argv[2:]]
torch.set_num_threads(1)
dist.init_process_group("gloo")
buckets = [torch.ones(size // 4) for size in sizes]
seconds = []
for _ in range(repeats):
    dist.barrier()
    begin = time.perf_counter()
    for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
        work.wait()
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds))
dist.destroy_process_group()
