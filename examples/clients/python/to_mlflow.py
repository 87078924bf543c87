#!/usr/bin/env python3
"""Writes a run to MLflow, live or finished:  to_mlflow.py ADDRESS [RUN]

    pip install grpcio grpcio-tools mlflow

The environment variable MLFLOW_TRACKING_URI selects MLflow's server. The configuration is stored as
parameters. The latest checkpoint, deliveries and problem are stored as tags. Every point keeps its step and
its time.

The cursor is a tag of MLflow's run. A restarted bridge resumes from it, without duplicate points. MLflow
cannot delete a point. If a resume supersedes written points, the bridge deletes MLflow's run (it can be
restored until `mlflow gc`) and creates a new run of the same name with all valid points. MLflow's databases
store infinity as the largest finite number, and NaN as NaN. A metric name that MLflow does not accept is
replaced, and the replacement is reported.

MLflow's run is closed even if this bridge receives no event about the run's end. Its status is then FAILED if
the run's process was killed or this bridge failed, and KILLED if this bridge was stopped. If the bridge is
restarted, MLflow's run is RUNNING again as soon as there are new events."""

import contextlib
import re

import host_run
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

MOST = 1000, 100  # maximum numbers of metrics and of parameters in one request
TAKEN = re.compile(r"[\w./ -]")  # characters that MLflow accepts in names of metrics and parameters
STATUS = {"COMPLETED": "FINISHED", "REQUESTED": "FINISHED", "INTERRUPTED": "KILLED", "TERMINATED": "KILLED"}


def cut(items, most):
    return [items[at : at + most] for at in range(0, len(items), most)]


def create(client, experiment, run):
    tags = {"host.run": run.name, "host.id": run.id, "host.cursor": "0"}
    made = client.create_run(
        experiment, start_time=run.created_us // 1000, run_name=run.name, tags=tags
    ).info.run_id
    for some in cut(
        [Param(name(key), str(value)[:6000]) for key, value in host_run.flat(run.config).items()], MOST[1]
    ):
        client.log_batch(made, params=some)
    return made


def follow(run, start):
    """Writes all batches of events, and the final status when the run ends. Returns the last cursor."""
    global mirror
    at_work = False
    for batch in run.batches(start):
        if batch.start_over:
            client.delete_run(mirror)
            mirror = create(client, experiment, run)
            at_work = True
        if (batch.metrics or batch.others) and not at_work:
            client.update_run(mirror, status="RUNNING")
            at_work = True
        points = [
            Metric(name(value.name), value.value, event.time_us // 1000, event.step)
            for event in batch.metrics
            for value in event.metrics.values
        ]
        for some in cut(points, MOST[0]):
            client.log_batch(mirror, some)
        tags = {key: str(value)[:5000] for key, value in batch.facts().items()} | {
            "host.cursor": str(batch.cursor)
        }
        client.log_batch(mirror, tags=[RunTag(key, value) for key, value in tags.items()])
        for kind, event in batch.others:
            if kind == "run_started":
                client.update_run(mirror, status="RUNNING")
            elif kind == "run_finished":
                reason = host_run.pb.StopReason.Name(event.run_finished.reason).removeprefix("STOP_REASON_")
                client.set_terminated(mirror, STATUS.get(reason, "FAILED"), event.time_us // 1000)
        if batch.end == "RUN_CRASHED":
            client.set_terminated(mirror, "FAILED")
    return batch.cursor


run, args = host_run.connect(__doc__, ("--experiment", "host", "MLflow's experiment"))
name = host_run.Names("MLflow", TAKEN.match, paths=True, most=250)
client = MlflowClient()
known = client.get_experiment_by_name(args.experiment)
experiment = known.experiment_id if known else client.create_experiment(args.experiment)
mirrors = client.search_runs([experiment], f"tags.`host.run` = '{run.name}' and tags.`host.id` = '{run.id}'")
mirror = mirrors[0].info.run_id if mirrors else create(client, experiment, run)
try:
    cursor = follow(run, int(mirrors[0].data.tags["host.cursor"]) if mirrors else 0)
except BaseException as error:
    with contextlib.suppress(Exception):  # this call fails too if MLflow caused the error
        client.set_terminated(mirror, "KILLED" if isinstance(error, host_run.Stopped) else "FAILED")
    raise
print(f"{run.name}: written to MLflow's run {mirror} up to event {cursor}")
