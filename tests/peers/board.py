"""Starts an unmodified TensorBoard that reads a run over gRPC, and queries TensorBoard's HTTP API."""

import contextlib
import json
import re
import struct
import sys
import urllib.parse
import urllib.request

from program import running, wait_for


@contextlib.contextmanager
def tensorboard(grpc, log):
    """Runs a TensorBoard that reads the host at a gRPC address. Yields the address of TensorBoard's page."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--grpc_data_provider={grpc}",
        "--host=127.0.0.1",
        "--port=0",
    ]
    with running(command, log):
        yield wait_for("TensorBoard", lambda: re.search(r"http://([^/\s]+)/", log.read_text())).group(1)


def get(page, path, body=None, **query):
    url = f"http://{page}/{path}?{urllib.parse.urlencode(query)}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def curve(page, tag, run="live"):
    """Returns the points of a curve as [time, step, value]; empty if the run has none yet."""
    tags = get(page, "data/plugin/scalars/tags")
    if tag not in tags.get(run, {}):
        return []
    return get(page, "data/plugin/scalars/scalars", run=run, tag=tag)


def printed(log):
    """Returns the points that a run printed: for each metric, a map from (step, seconds) to the value. Values
    are in single precision, as in TensorBoard's protocol."""
    series = {}
    for line in log.read_text().splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        for tag, value in (event.get("values") or {}).items():
            place = (event["step"], round(event["time_us"] / 1e6, 6))
            series.setdefault(tag, {})[place] = struct.unpack("f", struct.pack("f", float(value)))[0]
    return series
