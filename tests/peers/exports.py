"""`host runs export` against the readers that people use: pandas, pyarrow and TensorBoard's EventAccumulator.

The run has values that are no numbers and was interrupted and resumed from an older checkpoint, so that
some of its points no longer count. What the readers give must be what the store gives, value by value:
in CSV and Parquet bit by bit, in TensorBoard's event files in single precision, which is theirs.
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

sys.path.pop(0)  # this folder has a tensorboard.py, too

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
    """A float that equals itself."""
    return "nan" if math.isnan(value) else value


def single(value):
    return bits(struct.unpack("f", struct.pack("f", value))[0])


folder.mkdir(parents=True, exist_ok=True)
flags = [*DIVERGING, "--save-checkpoint-steps", 2, "--keep-checkpoints", 0]
said = run(*training(host, runs, "wild", 30, *flags)[1:])
first = json.loads(run("runs", "show", "wild", "--json", "--runs-dir", runs))
said += run("resume", runs / "wild", "--json", "--from", "step-000010", "--max-train-steps", 40)

# What counts, by what the run printed and the rule for what a resume supersedes.
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
    sys.exit("error: the comparison shows nothing: every value is a number")
if len(stored["loss/train"]) != 40 or first["last_step"] != 30:
    sys.exit(f"error: the run was not as meant: {len(stored['loss/train'])} steps")


def compare(reader, theirs, convert=bits):
    ours = {
        name: [(step, time, convert(value)) for step, time, value in points]
        for name, points in stored.items()
    }
    if set(theirs) != set(ours):
        sys.exit(f"error: {reader} has other metrics: {sorted(set(theirs) ^ set(ours))}")
    for name, points in ours.items():
        if theirs[name] != points:
            differ = [pair for pair in zip(theirs[name], points) if pair[0] != pair[1]]
            sys.exit(
                f"error: {reader} reads {name} as {len(theirs[name])} points, of {len(points)}; {differ[:1]}"
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
    sys.exit(f"error: pandas has taken the columns for {dict(frame.dtypes)}")
compare("pandas, csv", by_metric(frame))
compare("pandas, parquet", by_metric(pandas.read_parquet(folder / "wild.parquet")))

table = pyarrow.parquet.read_table(folder / "wild.parquet")
types = [str(field.type) for field in table.schema]
if types != ["uint64", "timestamp[us, tz=UTC]", "string", "double"]:
    sys.exit(f"error: pyarrow has taken the columns for {types}")

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
    except OverflowError:  # struct's word for what a cast makes infinite
        return math.copysign(math.inf, value)


compare("EventAccumulator", scalars, as_single)
