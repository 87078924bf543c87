"""Stock TensorBoard reads a run of the host's over gRPC, live and afterwards.

A run without an end in sight is followed until TensorBoard's own HTTP API has shown it grow, and then
interrupted. `host serve` takes over, and the points that TensorBoard gives must be those that the run
printed: all of them, or a thousand with the last. Usage: tensorboard.py HOST FOLDER
"""

import contextlib
import json
import math
import pathlib
import signal
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request

INTERRUPTED = 130  # exit code of a run that was asked to end by Ctrl-C
host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
sources = pathlib.Path(__file__).resolve().parents[2] / "host" / "core" / "src"


def fail(why):
    sys.exit(f"error: {why}")


def wait_for(what, find, seconds=120):
    """What `find` gives, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = find()
        if found:
            return found
        time.sleep(0.1)
    fail(f"{what} did not come in {seconds} s")


@contextlib.contextmanager
def running(name, command):
    """A program that is stopped at the end, with what it prints in NAME.log."""
    log = folder / f"{name}.log"
    with open(log, "w") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait()


def address(log, mark):
    """The rest of the word in the log that begins with the mark."""
    words = log.read_text().split()
    return next((word[len(mark):].strip(":/") for word in words if word.startswith(mark)), None)


def tensorboard(grpc):
    return running("tensorboard", [sys.executable, "-m", "tensorboard.main", f"--grpc_data_provider={grpc}",
                                   "--host=127.0.0.1", "--port=0"])


def get(page, path, body=None, **query):
    url = f"http://{page}/{path}?{urllib.parse.urlencode(query)}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def curve(page, tag, run="live"):
    """The points of a curve as [time, step, value], nothing if the run has none yet."""
    tags = get(page, "data/plugin/scalars/tags")
    if tag not in tags.get(run, {}):
        return []
    return get(page, "data/plugin/scalars/scalars", run=run, tag=tag)


def as_float(value):
    """A value as single precision has it, which is what TensorBoard's protocol carries."""
    return struct.unpack("f", struct.pack("f", float(value)))[0]


folder.mkdir(parents=True, exist_ok=True)
runs = folder / "runs"
train = [host, "run", "--json", "--data", sources, "--extensions", "rs", "--valid-every", 3, "--model", "tiny",
         "--vocab-size", 300, "--seq-length", 32, "--train-batch-size", 4, "--valid-batch-size", 4, "--max-eval-steps", 2,
         "--save-checkpoint-steps", 50, "--keep-checkpoints", 1, "--gradient-accumulation-steps", 1,
         "--num-warmup-steps", 5, "--max-train-steps", 1_000_000, "--runs-dir", runs, "--name", "live",
         "--device", "cpu", "--plugin", "perplexity"]
with running("run", train) as (process, log):
    grpc_file = runs / "live" / "grpc.addr"
    grpc = wait_for("the run's address", lambda: grpc_file.exists() and grpc_file.read_text().strip())
    with tensorboard(grpc) as (_, page_log):
        page = wait_for("TensorBoard", lambda: address(page_log, "http://"))
        first = wait_for("the first points", lambda: curve(page, "loss/train"))[-1]
        later = wait_for("growth", lambda: (points := curve(page, "loss/train"))[-1][1] > first[1] and points)[-1]
        wait_for("an evaluation", lambda: curve(page, "perplexity"))
    process.send_signal(signal.SIGINT)
    if process.wait() != INTERRUPTED:
        fail(f"the run ended with {process.returncode}: {log.read_text()[-2000:]}")
print(f"live: TensorBoard saw the run at step {first[1]} and then at step {later[1]}")

printed = {}
for line in log.read_text().splitlines():
    event = json.loads(line) if line.startswith("{") else {}
    for tag, value in (event.get("values") or {}).items():
        printed.setdefault(tag, {})[(event["step"], round(event["time_us"] / 1e6, 6))] = as_float(value)

with running("serve", [host, "serve", "--runs-dir", runs]) as (_, log):
    grpc = wait_for("the service", lambda: address(log, "127.0.0.1:"))
    with tensorboard(f"127.0.0.1:{grpc}") as (_, page_log):
        page = wait_for("TensorBoard", lambda: address(page_log, "http://"))
        tags = wait_for("the run", lambda: get(page, "data/plugin/scalars/tags").get("live"))
        if set(tags) != set(printed):
            fail(f"TensorBoard has other curves: {sorted(set(tags) ^ set(printed))}")
        points = 0
        for tag, ours in printed.items():
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
        if not {"learning_rate", "seed", "model"} <= hparams:
            fail(f"TensorBoard has the hparams {sorted(hparams)}")
print(f"over: TensorBoard has the run's {points} points in {len(printed)} curves, and {len(hparams)} hparams")
