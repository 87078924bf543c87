"""Serves one run with arbitrary metric names: fake_run.py {NAME: [[STEP, TIME_US, VALUE], ...], ...}

Prints its address. The run has the name `wild`; it stays live and sends no further events.
"""

import json
import pathlib
import sys
import threading
from concurrent import futures

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "clients" / "python"))
import grpc
from host_run import pb, services

points = json.loads(sys.argv[1])
begun = min(time_us for of in points.values() for _, time_us, _ in of)
config = {"model": "tiny", "plugin": [{"id": "perplexity"}, {"id": "local-disk", "dir": "/c"}]}


def events():
    yield {"step": 0, "run_started": pb.RunStarted()}
    by_step = {}
    for name, of in points.items():
        for step, time_us, value in of:
            by_step.setdefault((step, time_us), []).append(pb.MetricValue(name=name, value=value))
    for (step, time_us), values in sorted(by_step.items(), key=lambda item: item[0]):
        yield {"step": step, "time_us": time_us, "metrics": pb.Metrics(values=values)}
    yield {
        "step": step,
        "time_us": time_us,
        "checkpoint_written": pb.CheckpointWritten(name=f"step-{step:06}"),
    }
    yield {
        "step": step,
        "time_us": time_us,
        "delivery": pb.Delivery(sink="local-disk", checkpoint_step=step, state=pb.DELIVERY_STATE_DELIVERED),
    }


log = [pb.Event(**{"seq": seq, "time_us": begun} | event) for seq, event in enumerate(events(), 1)]


class Fake(services.TrackerServiceServicer):
    def GetRun(self, request, context):
        return pb.GetRunResponse(
            run=pb.Run(name="wild", created_time_us=begun), config_json=json.dumps(config)
        )

    def WatchEvents(self, request, context):
        yield pb.WatchEventsResponse(events=log[request.after_seq :], cursor=len(log))
        if request.follow:
            threading.Event().wait()
        yield pb.WatchEventsResponse(cursor=len(log), end=pb.WatchEnd(reason=pb.WATCH_END_REASON_CAUGHT_UP))


server = grpc.server(futures.ThreadPoolExecutor(64))
services.add_TrackerServiceServicer_to_server(Fake(), server)
print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
server.start()
server.wait_for_termination()
