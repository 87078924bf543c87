#!/usr/bin/env python3
"""Writes a run to trackio, while it happens or afterwards:  to_trackio.py ADDRESS [RUN]

    pip install grpcio grpcio-tools trackio
    trackio show --project host

TRACKIO_DIR is the folder; `trackio sync` sends it to a Space. The configuration is the config, and what goes wrong is
an alert. Every point has its step and its time; infinity and NaN are kept.

It writes where trackio's importers write, since `trackio.log` takes no time. Each row has an id, which trackio takes
once: started again, it resumes from the cursor in the config, and no point comes twice. When a resume supersedes
points that trackio has, they are removed: the run is deleted there and written again. A metric's name that
trackio needs for itself is renamed and reported. When the run's process is gone or something fails here, that is an
alert, too.
"""

import contextlib
from datetime import datetime, timezone

import host_run
from trackio.sqlite_storage import SQLiteStorage
from trackio.utils import RESERVED_KEYS


def iso(time_us):
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).isoformat()


def alert(events):
    """Each is (title, text, step, time, id)."""
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
        alert([("run_crashed", "the run's process is gone", *last, f"{run.id}-crashed-{batch.cursor}")])
except BaseException as error:
    if not isinstance(error, host_run.Stopped):
        with contextlib.suppress(Exception):  # it may be trackio that failed
            alert([("bridge_failed", str(error), *last, f"{run.id}-failed-{last[1]}")])
    raise
print(f"{run.name}: trackio's project {args.project} has it up to event {batch.cursor}")
