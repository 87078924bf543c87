"""Tests that unmodified TensorBoard reads a run over gRPC, live and afterwards.

TensorBoard reads a long run until its HTTP API has shown that the run's curves grow. Then the run is
interrupted, and TensorBoard reads it from `host serve`. TensorBoard must then show the points that the run
printed. If a curve has up to a thousand points, TensorBoard must show all of them. Otherwise, it must show a
thousand points, including the last.
Usage: tensorboard.py HOST FOLDER
"""

import math
import pathlib
import signal
import sys

from board import curve, get, printed, tensorboard
from program import fail, live_address, running, serving, wait_for
from training import training

INTERRUPTED = 130  # exit code of a run that was interrupted by Ctrl-C
host, folder = sys.argv[1], pathlib.Path(sys.argv[2])

folder.mkdir(parents=True, exist_ok=True)
runs, log = folder / "runs", folder / "run.log"
with running(training(host, runs, "live", 1_000_000), log) as process:
    with tensorboard(live_address(runs, "live"), folder / "tensorboard.log") as page:
        first = wait_for("the first points", lambda: curve(page, "loss/train"))[-1]
        later = wait_for(
            "growth", lambda: (points := curve(page, "loss/train"))[-1][1] > first[1] and points
        )[-1]
        wait_for("an evaluation", lambda: curve(page, "perplexity"))
    process.send_signal(signal.SIGINT)
    if process.wait() != INTERRUPTED:
        fail(f"the run ended with {process.returncode}: {log.read_text()[-2000:]}")
print(f"live: TensorBoard showed step {first[1]} and then step {later[1]}")

series = printed(log)
with serving(host, runs, folder / "serve.log") as grpc, tensorboard(grpc, folder / "tensorboard.log") as page:
    tags = wait_for("the run", lambda: get(page, "data/plugin/scalars/tags").get("live"))
    if set(tags) != set(series):
        fail(f"TensorBoard has other curves: {sorted(set(tags) ^ set(series))}")
    points = 0
    for tag, ours in series.items():
        theirs = {(step, round(wall, 6)): value for wall, step, value in curve(page, tag)}
        if len(theirs) != min(len(ours), 1000):
            fail(f"{tag} has {len(theirs)} points in TensorBoard and {len(ours)} in the run")
        if max(theirs) != max(ours):
            fail(f"{tag} ends at {max(theirs)} in TensorBoard and at {max(ours)} in the run")
        for place, value in theirs.items():
            if place not in ours or not (value == ours[place] or math.isnan(ours[place])):
                fail(f"{tag} is {value} at {place} in TensorBoard and {ours.get(place)} in the run")
        points += len(theirs)
    experiment = get(page, "data/plugin/hparams/experiment", {"experimentName": "", "hparamsLimit": 100})
    hparams = {info["name"] for info in experiment["hparamInfos"]}
    if not {"learning_rate", "seed", "model"} <= hparams or hparams & {"listen", "name", "runs_dir"}:
        fail(f"TensorBoard has the hparams {sorted(hparams)}")
    results = [info["name"]["tag"] for info in experiment["metricInfos"]]
    if results != ["loss/train", "loss/eval", "perplexity"]:
        fail(f"TensorBoard has the results {results}")
print(f"finished: TensorBoard has all {points} points in {len(series)} curves, and {len(hparams)} hparams")
