"""Measures one log call of four values with another tracker.

Usage: tracker_peer.py tensorboard|wandb|mlflow|trackio CALLS FOLDER
Prints one line of JSON: the microseconds of each call. Work in the background is not counted. The host's
benchmark does not count it either.
"""

import json
import os
import sys
import time

tool, calls, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
out, sys.stdout = sys.stdout, sys.stderr  # the tools print


def tensorboard():
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def log(step, values):
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def wandb():
    import wandb

    settings = wandb.Settings(mode="offline", x_disable_stats=True, silent=True)
    run = wandb.init(project="bench", dir=folder, settings=settings)
    return lambda step, values: run.log(values, step=step), run.finish


def mlflow():
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda step, values: mlflow.log_metrics(values, step=step), mlflow.end_run


def trackio():
    os.environ["TRACKIO_DIR"] = folder
    import trackio

    trackio.init(project="bench", embed=False)
    return lambda step, values: trackio.log(values, step=step), trackio.finish


log, close = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}[tool]()
us = []
begun = time.perf_counter()
for step in range(calls):
    # Log a thousand steps per second, like the host's benchmark.
    while time.perf_counter() < begun + step / 1000:
        pass
    value = step / 7
    call = time.perf_counter_ns()
    log(step, {"loss/train": value, "lr": value, "samples": value, "steps": value})
    us.append((time.perf_counter_ns() - call) / 1e3)
close()
print(json.dumps(us), file=out)
