#!/usr/bin/env python3
"""Shows a run's last values to Prometheus while it happens:  to_prometheus.py ADDRESS [RUN] --port 9464

    pip install grpcio grpcio-tools prometheus-client

`loss/train` is `host_loss_train{run="NAME",metric="loss/train"}`. Beside the metrics: `host_step`, `host_up` (1 while
the run is live), `host_last_event_timestamp_seconds` (an alert on a run that hangs), `host_events_total{kind=…}`
(checkpoint_written, plugin_fault, warning, …) and `host_deliveries_total{sink=…,state=…}`. A metric whose name clashes
with one of these is renamed and reported: `step` is `host_step_metric{metric="step"}`. Infinity and NaN are values to Prometheus, too.

Prometheus gives a point the time at which it asks, and keeps no steps: this shows how a run does, and the bridges
beside it keep its history. Started again it shows the same, the counters included; points that a resume superseded
are not in them. After the run's end, or when its process is gone without a word, `host_up` is 0, and the last values
are there for --linger seconds.
"""

import collections
import re
import sys
import threading
import time

import host_run
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

# What is beside the metrics, and the names that its samples have.
OWN = {"step", "up", "last_event_timestamp_seconds"}
OWN |= {counter + end for counter in ("events", "deliveries") for end in ("", "_total", "_created")}


class Exporter:
    """What the run said last. Prometheus asks on other threads, so both sides take the lock."""

    def __init__(self, run):
        self.run, self.ended, self.lock, self.told = run.name, False, threading.Lock(), set()
        self.is_connected = lambda: run.connected
        self.forget()

    def forget(self):
        self.values, self.step, self.time_us = {}, 0, 0
        self.events, self.deliveries = collections.Counter(), collections.Counter()

    def take(self, batch):
        with self.lock:
            if batch.start_over:
                self.forget()
            for kind, event in batch.others + [("metrics", event) for event in batch.metrics]:
                self.step, self.time_us = max(self.step, event.step), max(self.time_us, event.time_us)
                self.events[kind or "newer"] += 1
                if kind == "delivery":
                    self.deliveries[event.delivery.sink, host_run.delivery_state(event)] += 1
                for value in event.metrics.values:
                    self.values[value.name] = value.value
            self.ended = bool(batch.end)

    def end(self):
        with self.lock:
            self.ended = True

    def collect(self):
        with self.lock:
            return list(self.families())

    def families(self):
        up = int(not self.ended and self.is_connected())
        for name, about, value in (
            ("step", "Optimizer steps finished", self.step),
            ("up", "1 while the run is live", up),
            ("last_event_timestamp_seconds", "Time of the last event", self.time_us / 1e6),
        ):
            yield family(GaugeMetricFamily, name, about, ["run"], {(): value}, self.run)
        yield family(
            CounterMetricFamily,
            "events",
            "Events that count, by kind",
            ["run", "kind"],
            {(kind,): count for kind, count in self.events.items()},
            self.run,
        )
        yield family(
            CounterMetricFamily,
            "deliveries",
            "What became of deliveries",
            ["run", "sink", "state"],
            self.deliveries,
            self.run,
        )
        same = collections.defaultdict(dict)  # `a/b` and `a_b` are one name to Prometheus
        for name, value in self.values.items():
            same[self.family_name(name)][name,] = value
        for name, values in same.items():
            yield family(GaugeMetricFamily, name, "The last value", ["run", "metric"], values, self.run)

    def family_name(self, metric):
        name = re.sub("[^a-zA-Z0-9]+", "_", metric)
        if name not in OWN:
            return name
        if metric not in self.told:
            self.told.add(metric)
            print(
                f"note: the metric {metric!r} is host_{name}_metric: host_{name} is something else",
                file=sys.stderr,
            )
        return f"{name}_metric"


def family(kind, name, about, labels, values, run):
    made = kind(f"host_{name}", about, labels=labels)
    for of, value in values.items():
        made.add_metric([run, *of], value)
    return made


run, args = host_run.connect(
    __doc__,
    ("--port", 9464, "where Prometheus asks; 0 takes a free one"),
    ("--host", "127.0.0.1", "0.0.0.0 lets others ask"),
    ("--linger", 60, "seconds after the end"),
)
exporter, registry = Exporter(run), CollectorRegistry()
registry.register(exporter)
try:
    server, _ = start_http_server(args.port, args.host, registry)
except OSError as error:
    host_run.fail(f"cannot listen on port {args.port}: {error}", "--port takes another; 0 takes a free one")
print(f"http://{args.host}:{server.server_port}/metrics", flush=True)
lost = None
try:
    for batch in run.batches():
        exporter.take(batch)
    print(f"{run.name}: {batch.end} at step {exporter.step}", flush=True)
except host_run.Lost as error:
    lost = error
    print(f"{run.name}: its process is gone, at step {exporter.step}", flush=True)
exporter.end()
time.sleep(args.linger)
if lost:
    raise lost
