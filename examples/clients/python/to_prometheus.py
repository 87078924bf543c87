#!/usr/bin/env python3
"""Exports a live run's last values to Prometheus:  to_prometheus.py ADDRESS [RUN] --port 9464

    pip install grpcio grpcio-tools prometheus-client

`loss/train` is `host_loss_train{run="NAME",metric="loss/train"}`. Other series: `host_step`, `host_up` (1
while the run is live), `host_last_event_timestamp_seconds` (to alert on a run that hangs),
`host_events_total{kind=…}` (checkpoint_written, plugin_fault, warning, …) and
`host_deliveries_total{sink=…,state=…}`. A metric whose name conflicts with one of these is renamed, and the
new name is reported: `step` is `host_step_metric{metric="step"}`. Prometheus accepts infinity and NaN.

Prometheus stores the time of the scrape instead of the event's time, and it stores no steps. Use it for
monitoring; the other bridges keep the full history. A restarted bridge exports the same values and counters
as before. Events that a resume superseded are not counted. After the run has ended or its process was killed,
`host_up` is 0, and the last values are exported for another --linger seconds."""

import collections
import re
import sys
import threading
import time

import host_run
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

# Names of the series that are not metrics of the run. For counters, also the names of their samples.
OWN = {"step", "up", "last_event_timestamp_seconds"}
OWN |= {counter + end for counter in ("events", "deliveries") for end in ("", "_total", "_created")}


class Exporter:
    """The run's last values. Scrapes are served on other threads, so readers and writers hold the lock."""

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
            "Events by kind, without superseded events",
            ["run", "kind"],
            {(kind,): count for kind, count in self.events.items()},
            self.run,
        )
        yield family(
            CounterMetricFamily,
            "deliveries",
            "Deliveries by sink and state",
            ["run", "sink", "state"],
            self.deliveries,
            self.run,
        )
        same = collections.defaultdict(dict)  # `a/b` and `a_b` have the same name in Prometheus
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
                f"note: the metric {metric!r} is exported as host_{name}_metric, because host_{name} is reserved",
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
    ("--port", 9464, "the port for Prometheus; 0 selects a free one"),
    ("--host", "127.0.0.1", "the address to listen on; 0.0.0.0 for all"),
    ("--linger", 60, "seconds to keep serving after the run's end"),
)
exporter, registry = Exporter(run), CollectorRegistry()
registry.register(exporter)
try:
    server, _ = start_http_server(args.port, args.host, registry)
except OSError as error:
    host_run.fail(
        f"cannot listen on port {args.port}: {error}", "choose another --port; 0 selects a free one"
    )
print(f"http://{args.host}:{server.server_port}/metrics", flush=True)
lost = None
try:
    for batch in run.batches():
        exporter.take(batch)
    print(f"{run.name}: {batch.end} at step {exporter.step}", flush=True)
except host_run.Lost as error:
    lost = error
    print(f"{run.name}: lost the connection at step {exporter.step}", flush=True)
exporter.end()
time.sleep(args.linger)
if lost:
    raise lost
