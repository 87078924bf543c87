#!/usr/bin/env python3
"""Prints the events of a run, live or finished:  watch.py ADDRESS [RUN]

pip install grpcio grpcio-tools
"""

import host_run

run, _ = host_run.connect(__doc__)
for piece in run.watch():
    for event in piece.events:
        kind = event.WhichOneof("body")
        if kind == "metrics":
            text = "  ".join(f"{v.name} {v.value:.6g}" for v in event.metrics.values)
        else:
            text = f"{kind} {getattr(event, kind)}".replace("\n", "  ") if kind else "?"
        print(f"{event.seq:6}  step {event.step:6}  {text}", flush=True)
print(f"end: {host_run.pb.WatchEndReason.Name(piece.end.reason)}")
