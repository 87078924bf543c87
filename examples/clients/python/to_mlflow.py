#!/usr/bin/env python3
"""Writes a run to MLflow, while it happens or afterwards:  to_mlflow.py ADDRESS [RUN]

    pip install grpcio grpcio-tools mlflow

MLFLOW_TRACKING_URI is the server. The configuration becomes the parameters; checkpoints, deliveries and troubles are
tags, each with the last of its kind. Every point has its step and its time.

Started again it resumes from the cursor, which is a tag of MLflow's run: no point comes twice. MLflow cannot take a
point back. So when a resume supersedes points that it has, its run is deleted (until `mlflow gc` it can be restored)
and a new one of the same name has all that counts. MLflow's databases keep an infinite value as the
largest number there is, NaN as NaN. A metric's name that MLflow does not take is renamed and reported.

MLflow's run is always closed: as FAILED when the run's process is gone or something fails here, as KILLED
when this is stopped. Started again, it is RUNNING as soon as there is something new.
"""

import contextlib
import re

import host_run
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

MOST = 1000, 100  # metrics and parameters that MLflow takes at once
TAKEN = re.compile(r"[\w./ -]")  # in the name of a metric or a parameter
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
    """Writes what comes, and how the run ended, if it did."""
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
    with contextlib.suppress(Exception):  # it may be MLflow that failed
        client.set_terminated(mirror, "KILLED" if isinstance(error, host_run.Stopped) else "FAILED")
    raise
print(f"{run.name}: MLflow's run {mirror} has it up to event {cursor}")
