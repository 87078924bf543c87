#!/usr/bin/env python3
"""Writes a run to Weights & Biases, live or finished:  to_wandb.py ADDRESS [RUN]

    pip install grpcio grpcio-tools wandb

W&B's own environment variables apply: WANDB_MODE=offline writes files that `wandb sync` uploads later, and
WANDB_DIR is their folder. The configuration is stored as W&B's config. The latest checkpoint, the latest
delivery of each sink and the latest problem are stored in W&B's summary.

W&B's internal step must increase, and W&B merges all points with the same internal step into one row. This
bridge therefore uses the event's sequence number as the internal step, so that no points are lost or merged.
The optimizer step is the metric `step`, which is the axis of the charts. Infinity and NaN are kept. A metric
name that W&B or this file reserves is replaced, and the replacement is reported.

W&B's run is always closed. It is closed as failed if the run's process was killed or this bridge failed. A
bridge that is restarted in the same folder resumes from the cursor in wandb/ID.json. W&B cannot delete a
point. If a resume supersedes written points, the bridge creates a new run of the same name in the same group,
with all valid points. The id of the newer run ends with a higher number."""

import json
import os
import pathlib

import host_run
import wandb

OWN = ("step", "checkpoint", "trouble")  # names that this file uses in addition to the metrics

run, args = host_run.connect(__doc__, ("--project", os.environ.get("WANDB_PROJECT", "host"), "W&B's project"))
kept = pathlib.Path(os.environ.get("WANDB_DIR", ".")) / "wandb" / f"{run.id}.json"
place = json.loads(kept.read_text()) if kept.exists() else {"take": 1, "cursor": 0}
name = host_run.Names(
    "W&B", lambda char: char not in "\\*\0", lambda name: name.startswith(("_", "delivery.")) or name in OWN
)
mirror = None
try:
    for batch in run.batches(place["cursor"]):
        if batch.start_over:
            if mirror:
                mirror.finish()
            mirror, place["take"] = None, place["take"] + 1
        if not mirror and batch.metrics:  # W&B's run is created only when there are new points
            mirror = wandb.init(
                project=args.project,
                id=f"{run.id}-{place['take']}",
                name=run.name,
                group=run.name,
                resume="allow",
                config=run.config,
                settings=wandb.Settings(x_disable_stats=True, console="off", silent=True),
            )
            mirror.define_metric("step")
            mirror.define_metric("*", step_metric="step")
        for event in batch.metrics:
            row = {name(value.name): value.value for value in event.metrics.values}
            mirror.log(row | {"step": event.step, "_timestamp": event.time_us / 1e6}, step=event.seq)
        if mirror:
            mirror.summary.update(batch.facts())
        place["cursor"] = batch.cursor
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(place))
except BaseException as error:
    if mirror:
        mirror.finish(exit_code=error.code if isinstance(error, host_run.Stopped) else 1)
    raise
if mirror:
    mirror.finish(exit_code=0 if batch.end == "RUN_FINISHED" else 1)
print(f"{run.name}: written to W&B's run {run.id}-{place['take']} up to event {batch.cursor}")
