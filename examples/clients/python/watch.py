#!/usr/bin/env python3
"""Prints a run while it happens:  watch.py ADDRESS [RUN]

    pip install grpcio grpcio-tools

ADDRESS is what `host run` prints and keeps in the run folder's grpc.addr; RUN may be left out where
the server has one run only. Run it from the repository, or give PROTO=folder of the .proto files.
"""
import os
import pathlib
import sys
import time

import grpc

proto = pathlib.Path(__file__).resolve().parents[3] / "proto"
sys.path.insert(0, os.environ.get("PROTO", str(proto)))
pb, services = grpc.protos_and_services("tracker/v1/tracker.proto")

address, run = (sys.argv[1:] + [""])[:2] if len(sys.argv) > 1 else sys.exit(__doc__)
tracker = services.TrackerServiceStub(grpc.insecure_channel(address))
cursor, end, failures = 0, None, 0
while not end:  # A connection that breaks is made again: the cursor says where to go on.
    try:
        request = pb.WatchEventsRequest(run=run, after_seq=cursor, follow=True)
        for piece in tracker.WatchEvents(request):
            for event in piece.events:
                kind = event.WhichOneof("body")
                if kind == "metrics":
                    text = "  ".join(f"{v.name} {v.value:.6g}" for v in event.metrics.values)
                else:
                    text = f"{kind} {getattr(event, kind)}".replace("\n", "  ") if kind else "?"
                print(f"{event.seq:6}  step {event.step:6}  {text}", flush=True)
            cursor, failures = piece.cursor, 0
            if piece.HasField("end") and piece.end.reason != pb.WATCH_END_REASON_SERVER_STOPPING:
                end = pb.WatchEndReason.Name(piece.end.reason)
    except grpc.RpcError as error:
        failures += 1
        if error.code() != grpc.StatusCode.UNAVAILABLE or failures > 10:
            sys.exit(f"error: {error.details()}")
        time.sleep(1)
print(f"end: {end}")
