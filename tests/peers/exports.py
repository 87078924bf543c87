"""Reads the output of `host runs export` with pandas, pyarrow and TensorBoard's EventAccumulator. Compares the result
with the points that the run printed.

Some values of the run are not finite. The run was resumed from an older checkpoint, so some of its points no longer
count. The readers must return every value of the store. The values in CSV and Parquet files must be exact.
The values in TensorBoard's event files have single precision.
Usage: exports.py HOST FOLDER
"""

import collections
import json
import math
import pathlib
import struct
import subprocess
import sys

from training import DIVERGING, training

sys.path.pop(0)  # this folder's tensorboard.py would hide the package

import pandas
import pyarrow
import pyarrow.parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

host, folder = sys.argv[1], pathlib.Path(sys.argv[2])
runs = folder / "runs"


def run(*words):
    done = subprocess.run([str(word) for word in (host, *words)], check=True, capture_output=True, text=True)
    return done.stdout


def bits(value):
    """Returns the value, or a text for NaN, because NaN does not equal itself."""
    return "nan" if math.isnan(value) else value


def single(value):
    return bits(struct.unpack("f", struct.pack("f", value))[0])


folder.mkdir(parents=True, exist_ok=True)
flags = [*DIVERGING, "--save-checkpoint-steps", 2, "--keep-checkpoints", 0]
said = run(*training(host, runs, "wild", 30, *flags)[1:])
first = json.loads(run("runs", "show", "wild", "--json", "--runs-dir", runs))
said += run("resume", runs / "wild", "--json", "--from", "step-000010", "--max-train-steps", 40)

# The points that count: the printed points without those that the resume superseded.
stored = collections.defaultdict(list)
for line in said.splitlines():
    event = json.loads(line)
    if event.get("kind") == "superseded":
        for points in stored.values():
            points[:] = [point for point in points if point[0] <= event["from_step"]]
    for name, value in (event.get("values") or {}).items():
        stored[name].append((event["step"], event["time_us"], float(value)))
stored = {name: points for name, points in stored.items() if points}
flat = [value for points in stored.values() for _, _, value in points]
if not any(map(math.isnan, flat)) or not any(map(math.isinf, flat)):
    sys.exit("error: the comparison is meaningless: every value is finite")
if len(stored["loss/train"]) != 40 or first["last_step"] != 30:
    sys.exit(f"error: unexpected run: {len(stored['loss/train'])} steps")


def compare(reader, theirs, convert=bits):
    ours = {
        name: [(step, time, convert(value)) for step, time, value in points]
        for name, points in stored.items()
    }
    if set(theirs) != set(ours):
        sys.exit(f"error: {reader} reads other metrics: {sorted(set(theirs) ^ set(ours))}")
    for name, points in ours.items():
        if theirs[name] != points:
            differ = [pair for pair in zip(theirs[name], points) if pair[0] != pair[1]]
            sys.exit(
                f"error: {reader} reads {len(theirs[name])} points of {name} instead of {len(points)}; {differ[:1]}"
            )
    print(f"{reader}: {sum(map(len, ours.values()))} points of {len(ours)} metrics, all equal")


def by_metric(frame):
    theirs = collections.defaultdict(list)
    for step, time, metric, value in frame[["step", "time", "metric", "value"]].itertuples(index=False):
        theirs[metric].append((step, round(time.timestamp() * 1e6), bits(value)))
    return theirs


for extension in ("csv", "parquet", "tensorboard"):
    run("runs", "export", runs / "wild", "--format", extension, "--out", folder / f"wild.{extension}")
frame = pandas.read_csv(folder / "wild.csv", parse_dates=["time"])
if (
    str(frame["time"].dtype).split(",")[0] not in ("datetime64[us", "datetime64[ns")
    or frame["value"].dtype != "float64"
):
    sys.exit(f"error: pandas reads the column types {dict(frame.dtypes)}")
compare("pandas, csv", by_metric(frame))
compare("pandas, parquet", by_metric(pandas.read_parquet(folder / "wild.parquet")))

table = pyarrow.parquet.read_table(folder / "wild.parquet")
types = [str(field.type) for field in table.schema]
if types != ["uint64", "timestamp[us, tz=UTC]", "string", "double"]:
    sys.exit(f"error: pyarrow reads the column types {types}")

events = EventAccumulator(str(folder / "wild.tensorboard"), size_guidance={"scalars": 0})
events.Reload()
scalars = {
    tag: [
        (scalar.step, round(scalar.wall_time * 1e6), single(scalar.value)) for scalar in events.Scalars(tag)
    ]
    for tag in events.Tags()["scalars"]
}


def as_single(value):
    try:
        return single(value)
    except OverflowError:  # raised by struct where a cast would give infinity
        return math.copysign(math.inf, value)


compare("EventAccumulator", scalars, as_single)
