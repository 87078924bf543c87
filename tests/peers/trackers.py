"""Reads a run back from each tracker with the tracker's own reader, and compares it with the run's output."""

import collections
import contextlib
import datetime
import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import urllib.request

from program import fail, wait_for
from prometheus_client.parser import text_string_to_metric_families


class Renamed(dict):
    """Points by name, for a tool that changes the names. `same` then pairs the metrics of the tool and the run by their
    values instead of their names."""


def same(tool, theirs, ours, time=lambda us: us, value=lambda value: value):
    """Fails unless a tool has the run's points. The times and values of the run are first converted to the
    precision of the tool."""
    if isinstance(ours, Renamed):  # metrics are matched by their values, which differ between metrics
        theirs, ours = (
            {repr(sorted(value for _, _, value in points)): points for points in of.values()}
            for of in (theirs, ours)
        )
    if set(theirs) != set(ours):
        fail(f"{tool} has other metrics: {sorted(set(theirs) ^ set(ours))}")
    for name, points in ours.items():
        wanted = collections.Counter((step, time(us), repr(value(number))) for step, us, number in points)
        has = collections.Counter((step, us, repr(number)) for step, us, number in theirs[name])
        if has != wanted:
            fail(
                f"{tool} has {has.total()} points of {name} instead of {wanted.total()}; unexpected: "
                f"{list((has - wanted).elements())[:2]}, missing: {list((wanted - has).elements())[:2]}"
            )
    print(f"{tool}: {sum(map(len, ours.values()))} points of {len(ours)} metrics, all equal")


class MLflow:
    script, words, settings = "to_mlflow.py", (), {}

    def __init__(self, place):
        self.uri = f"sqlite:///{place}/mlflow.db"
        self.settings = {"MLFLOW_TRACKING_URI": self.uri}
        self.database = place / "mlflow.db"

    def run(self):
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("host")
        found = (
            client.search_runs([experiment.experiment_id], "attributes.run_name = 'wild'")
            if experiment
            else []
        )
        return client, found[0] if len(found) == 1 else None

    def points(self):
        client, found = self.run()
        return {
            name: [
                (point.step, point.timestamp, point.value)
                for point in client.get_metric_history(found.info.run_id, name)
            ]
            for name in found.data.metrics
        }

    def check(self, ours):
        same(
            "MLflow",
            self.points(),
            ours,
            lambda us: us // 1000,
            lambda value: math.copysign(sys.float_info.max, value) if math.isinf(value) else value,
        )
        data = self.run()[1].data
        if data.params.get("model") != "tiny" or data.params.get("plugin/perplexity/id") != "perplexity":
            fail(f"MLflow has the parameters {data.params}")
        if not data.tags.get("checkpoint", "").startswith("step-") or "delivery.local-disk" not in data.tags:
            fail(f"MLflow has the tags {data.tags}")

    def status(self):
        return self.run()[1].info.status

    def step(self):
        """Returns the last step written so far."""
        if not self.database.exists():
            return 0
        with contextlib.suppress(sqlite3.OperationalError):  # the tables do not exist yet
            with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database:
                return (
                    database.execute("select max(step) from metrics where key = 'loss/train'").fetchone()[0]
                    or 0
                )
        return 0


class Wandb:
    script, words = "to_wandb.py", ()

    def __init__(self, place):
        place.mkdir(parents=True)
        self.place = place / "wandb"
        self.settings = {"WANDB_MODE": "offline", "WANDB_DIR": place}

    def records(self):
        """Yields the records of the newest run, read as `wandb sync` does: the files have LevelDB's log format and
        contain W&B's messages."""
        from wandb.proto import wandb_internal_pb2

        kept = next(self.place.glob("*.json"))
        take = f"{kept.stem}-{json.loads(kept.read_text())['take']}"
        for path in sorted(self.place.glob(f"offline-run-*-{take}/run-{take}.wandb")):
            data, at, parts = path.read_bytes(), 7, b""
            while at + 7 <= len(data):
                if 32768 - at % 32768 < 7:
                    at += 32768 - at % 32768
                    continue
                size, kind = struct.unpack_from("<HB", data, at + 4)
                parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
                if kind in (1, 4):  # a full record, or the last part of one
                    yield wandb_internal_pb2.Record.FromString(parts)
                    parts = b""

    def check(self, ours):
        theirs, config, summary, last = collections.defaultdict(list), {}, {}, 0
        for record in self.records():
            for item in [*record.run.config.update, *record.config.update]:
                config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = item.value_json
            if record.WhichOneof("record_type") == "run" and record.run.display_name != "wild":
                fail(f"W&B has the run's name as {record.run.display_name}")
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                if record.history.step.num <= last:
                    fail(f"W&B would drop step {record.history.step.num} after {last}")
                last = record.history.step.num
                for name, value in row.items():
                    if name != "step" and not name.startswith("_"):
                        theirs[name].append((row["step"], round(row["_timestamp"] * 1e6), float(value)))
        same("W&B", theirs, ours)
        if config.get("model") != "tiny" or "perplexity" not in config.get("plugin", {}):
            fail(f"W&B has the configuration {config}")
        if "checkpoint" not in summary:
            fail(f"W&B has the summary {summary}")

    def step(self):
        kept = next(self.place.glob("*.json"), None)
        return json.loads(kept.read_text() or "{}").get("cursor", 0) if kept else 0


class Trackio:
    script, words = "to_trackio.py", ("--project", "peers")

    def __init__(self, place):
        self.place = place
        self.settings = {"TRACKIO_DIR": place}

    def rows(self):
        """Reads in a separate process, because trackio reads its folder setting when it is imported."""
        code = (
            "import json; from trackio import Api; from trackio.sqlite_storage import SQLiteStorage as s\n"
            "runs = [(run.name, run.id, run.config) for run in Api().runs('peers')]\n"
            "print(json.dumps([runs, s.get_logs('peers', runs[0][0], run_id=runs[0][1]) if runs else []], default=str))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"TRACKIO_DIR": str(self.place)},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    def check(self, ours):
        found, rows = self.rows()
        if [name for name, _, _ in found] != ["wild"] or found[0][2].get("model") != "tiny":
            fail(f"trackio has the runs {found}")
        theirs = collections.defaultdict(list)
        for row in rows:
            us = round(datetime.datetime.fromisoformat(row["timestamp"]).timestamp() * 1e6)
            for name, value in row.items():
                if name not in ("step", "timestamp"):
                    theirs[name].append((row["step"], us, float(value)))
        same("trackio", theirs, ours)

    def step(self):
        if not (self.place / "peers.db").exists():
            return 0
        with contextlib.suppress(sqlite3.OperationalError):
            with contextlib.closing(sqlite3.connect(self.place / "peers.db", timeout=30)) as database:
                return database.execute("select max(step) from metrics").fetchone()[0] or 0
        return 0


class Prometheus:
    script, words, settings = "to_prometheus.py", ("--port", 0, "--linger", 600), {}
    out = None

    def families(self):
        url = next((word for word in self.out.read_text().split() if word.startswith("http://")), None)
        if not url:
            return []
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))

    def value(self, name, **labels):
        return next(
            (
                sample.value
                for family in self.families()
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            ),
            None,
        )

    def check(self, ours):
        wait_for("the end in Prometheus's bridge", lambda: self.value("host_up", run="wild") == 0)
        theirs = {
            sample.labels["metric"]: repr(sample.value)
            for family in self.families()
            for sample in family.samples
            if "metric" in sample.labels and sample.labels["run"] == "wild"
        }
        wanted = {name: repr(points[-1][2]) for name, points in ours.items()}
        if theirs != wanted:
            fail(f"Prometheus differs: {sorted(set(theirs.items()) ^ set(wanted.items()))[:4]}")
        if not self.value("host_deliveries_total", sink="local-disk", state="delivered"):
            fail("Prometheus has no deliveries")
        print(f"Prometheus: the last values of {len(wanted)} metrics, all equal")

    def step(self):
        return (self.value("host_step", run="wild") or 0) if self.out and self.out.exists() else 0


def bridges(place):
    return [MLflow(place / "mlflow"), Wandb(place / "wandb"), Trackio(place / "trackio"), Prometheus()]
