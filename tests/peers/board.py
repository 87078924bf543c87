"""Stock TensorBoard over the host's gRPC, for the tests: starts both, and asks TensorBoard's HTTP API."""

import contextlib
import json
import pathlib
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "host" / "core" / "src"


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
def running(command, log):
    """A program that is stopped at the end, with what it prints in a file."""
    with open(log, "w") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def address(log, mark):
    """The rest of the word in the log that begins with the mark."""
    words = log.read_text().split()
    return next((word[len(mark):].strip(":/") for word in words if word.startswith(mark)), None)


def training(host, runs, name, steps, *more):
    """The command of a small run that says on its output what it does, as JSON."""
    return [host, "run", "--json", "--data", SOURCES, "--extensions", "rs", "--valid-every", 3, "--model", "tiny",
            "--vocab-size", 300, "--seq-length", 32, "--train-batch-size", 4, "--valid-batch-size", 4,
            "--max-eval-steps", 2, "--save-checkpoint-steps", 50, "--keep-checkpoints", 1,
            "--gradient-accumulation-steps", 1, "--num-warmup-steps", 5, "--max-train-steps", steps,
            "--runs-dir", runs, "--name", name, "--device", "cpu", "--plugin", "perplexity", *more]


def live_address(runs, name):
    """Where a run at work listens."""
    file = runs / name / "grpc.addr"
    return wait_for("the run's address", lambda: file.exists() and file.read_text().strip())


@contextlib.contextmanager
def serving(host, runs, log):
    """`host serve` over a folder of runs: where it listens."""
    with running([host, "serve", "--runs-dir", runs], log):
        yield "127.0.0.1:" + wait_for("the service", lambda: address(log, "127.0.0.1:"))


@contextlib.contextmanager
def tensorboard(grpc, log):
    """TensorBoard that reads the host at a gRPC address: where its page is."""
    command = [sys.executable, "-m", "tensorboard.main", f"--grpc_data_provider={grpc}", "--host=127.0.0.1", "--port=0"]
    with running(command, log):
        yield wait_for("TensorBoard", lambda: address(log, "http://"))


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


def printed(log):
    """Each metric's points as a run printed them: (step, seconds) to the value in single precision, which
    is what TensorBoard's protocol carries."""
    series = {}
    for line in log.read_text().splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        for tag, value in (event.get("values") or {}).items():
            place = (event["step"], round(event["time_us"] / 1e6, 6))
            series.setdefault(tag, {})[place] = struct.unpack("f", struct.pack("f", float(value)))[0]
    return series
