#!/usr/bin/env python3
"""Writes a run to trackio, live or finished:  to_trackio.py ADDRESS [RUN]

    pip install grpcio grpcio-tools trackio
    trackio show --project host

The environment variable TRACKIO_DIR selects trackio's folder; `trackio sync` sends it to a Hugging Face
Space. The run's configuration is stored as trackio's config, and problems as alerts. Every point keeps its
step and its time; infinity and NaN are kept.

This bridge uses the storage functions of trackio's importers, because `trackio.log` accepts no time. Each row
has an id, and trackio ignores rows whose id it already has. A restarted bridge resumes from the cursor in
trackio's config, without duplicate points. If a resume supersedes points that are already in trackio, the
run is deleted there and written again. A metric name that trackio reserves is replaced, and the
replacement is reported. An alert is also written if the run's process was killed or this bridge failed."""

import contextlib
from datetime import datetime, timezone

import host_run
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import RESERVED_KEYS


def iso(time_us):
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).isoformat()


def alert(events):
    """Writes alerts. Each event is (title, text, step, time, id)."""
    titles, texts, steps, times, ids = map(list, zip(*events))
    SQLiteStorage.bulk_alert(
        args.project,
        run.name,
        run_id=run.id,
        titles=titles,
        texts=texts,
        levels=["warn"] * len(events),
        steps=steps,
        timestamps=[iso(time) for time in times],
        alert_ids=ids,
    )


run, args = host_run.connect(__doc__, ("--project", "host", "trackio's project"))
name = host_run.Names("trackio", reserved=lambda name: name in RESERVED_KEYS or name.startswith("__"))
config = run.config | {"_Created": iso(run.created_us)}
kept = SQLiteStorage.get_run_config(args.project, run.name, run.id) or {}
last = 0, run.created_us  # step and time of the last event
try:
    for batch in run.batches(kept.get("cursor", 0)):
        if batch.start_over:
            SQLiteStorage.delete_run(args.project, run.name, run.id)
        SQLiteStorage.bulk_log(
            args.project,
            run.name,
            run_id=run.id,
            config=config | {"cursor": batch.cursor},
            metrics_list=[
                {name(value.name): value.value for value in event.metrics.values} for event in batch.metrics
            ],
            steps=[event.step for event in batch.metrics],
            timestamps=[iso(event.time_us) for event in batch.metrics],
            log_ids=[f"{run.id}-{event.seq}" for event in batch.metrics],
        )
        troubles = [
            (
                event.WhichOneof("body"),
                host_run.trouble(kind, event),
                event.step,
                event.time_us,
                f"{run.id}-{event.seq}",
            )
            for kind, event in batch.others
            if host_run.trouble(kind, event)
        ]
        if troubles:
            alert(troubles)
        for event in [event for _, event in batch.others] + batch.metrics:
            last = max(last, (event.step, event.time_us))
    if batch.end == "RUN_CRASHED":
        alert([("run_crashed", "the run's process was killed", *last, f"{run.id}-crashed-{batch.cursor}")])
except BaseException as error:
    if not isinstance(error, host_run.Stopped):
        with contextlib.suppress(Exception):  # this call fails too if trackio caused the error
            alert([("bridge_failed", str(error), *last, f"{run.id}-failed-{last[1]}")])
    raise
print(f"{run.name}: written to trackio's project {args.project} up to event {batch.cursor}")
