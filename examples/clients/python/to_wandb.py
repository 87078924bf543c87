#!/usr/bin/env python3
"""Writes a run to Weights & Biases, while it happens or afterwards:  to_wandb.py ADDRESS [RUN]

    pip install grpcio grpcio-tools wandb

W&B's own variables count: WANDB_MODE=offline writes files that `wandb sync` sends later, WANDB_DIR is their
folder. The configuration is the config; checkpoints, deliveries and troubles are in the summary, each with the last of
its kind.

W&B's internal step only grows, and has one row each. That is the event's place in the run here, and the optimizer's
step is the metric `step`, which the charts have as their axis: so no point of a step is lost or merged with another.
Infinity and NaN are kept. A metric's name that W&B or this file needs for itself is renamed and reported.

W&B's run is always finished: as failed when the run's process is gone or something fails here. Started
again from the same folder it resumes from the cursor, which it keeps there in wandb/ID.json. W&B cannot take
a point back: when a resume supersedes points that it has, a new run of the same name in the same group has all that
counts; the older one is the one whose id ends in the lower number.
"""

import json
import os
import pathlib

import host_run
import wandb

OWN = ("step", "checkpoint", "trouble")  # what this file puts beside the metrics

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
        if not mirror and batch.metrics:  # nothing new, nothing written
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
print(f"{run.name}: W&B's run {run.id}-{place['take']} has it up to event {batch.cursor}")
