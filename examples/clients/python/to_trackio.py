#!/usr/bin/env python3
"""Writes a run to trackio, while it happens or afterwards:  to_trackio.py ADDRESS [RUN]

    pip install grpcio grpcio-tools trackio
    trackio show --project host

TRACKIO_DIR is the folder; `trackio sync` sends it to a Space. The configuration is the config, and what goes wrong is
an alert. Every point has its step and its time; infinity and NaN are kept.

It writes where trackio's importers write, since `trackio.log` takes no time. Each row has an id, which trackio takes
once: started again, it resumes from the cursor in the config, and no point comes twice. When a resume supersedes
points that trackio has, they are removed: the run is deleted there and written again.
"""
from datetime import datetime, timezone

import host_run
from trackio.sqlite_storage import SQLiteStorage


def iso(time_us):
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).isoformat()


run, args = host_run.connect(__doc__, ("--project", "host", "trackio's project"))
config = run.config | {"_Created": iso(run.created_us)}
kept = SQLiteStorage.get_run_config(args.project, run.name, run.id) or {}
for batch in run.batches(kept.get("cursor", 0)):
    if batch.start_over:
        SQLiteStorage.delete_run(args.project, run.name, run.id)
    SQLiteStorage.bulk_log(
        args.project, run.name, run_id=run.id, config=config | {"cursor": batch.cursor},
        metrics_list=[{value.name: value.value for value in event.metrics.values} for event in batch.metrics],
        steps=[event.step for event in batch.metrics], timestamps=[iso(event.time_us) for event in batch.metrics],
        log_ids=[f"{run.id}-{event.seq}" for event in batch.metrics])
    troubles = [(event, host_run.trouble(kind, event)) for kind, event in batch.others if host_run.trouble(kind, event)]
    SQLiteStorage.bulk_alert(
        args.project, run.name, run_id=run.id, titles=[event.WhichOneof("body") for event, _ in troubles],
        texts=[text for _, text in troubles], levels=["warn"] * len(troubles), steps=[event.step for event, _ in troubles],
        timestamps=[iso(event.time_us) for event, _ in troubles], alert_ids=[f"{run.id}-{event.seq}" for event, _ in troubles])
print(f"{run.name}: trackio's project {args.project} has it up to event {batch.cursor}")
