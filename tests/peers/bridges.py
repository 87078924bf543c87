"""The clients of examples/clients against the tools that they write to: MLflow, W&B, trackio, Prometheus's parser.

A run that diverges, so that infinity and NaN are among its values, is followed live by every client at once, and
interrupted. Then it is resumed from an older checkpoint, so that points which the tools have no longer count, and
read again through `host serve`; then once more, which must change nothing, and by clients that never saw it. Each
time the tool's own reader must give the points that the run printed: each metric's steps, times and values.
Usage: bridges.py HOST FOLDER; the Rust client is beside HOST in examples/.
"""

import collections
import contextlib
import datetime
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import urllib.request

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from program import fail, live_address, running, serving, wait_for

INTERRUPTED = 130  # exit code of a run that was asked to end by Ctrl-C
root = pathlib.Path(__file__).resolve().parents[2]
host, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
clients, runs = root / "examples" / "clients", folder / "runs"
rust = host.parent / "examples" / "watch"


def run(*words):
    done = subprocess.run([str(word) for word in (host, *words)], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


# ---- what the run has

def events(said):
    printed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [event for event in printed if "seq" in event]  # and not how it ended


def that_count(all_events):
    """The points, by metric: (step, time in microseconds, value)."""
    points = collections.defaultdict(list)
    for event in all_events:
        if event.get("kind") == "superseded":
            for of in points.values():
                of[:] = [point for point in of if point[0] <= event["from_step"]]
        for name, value in (event.get("values") or {}).items():
            points[name].append((event["step"], event["time_us"], float(value)))
    return {name: of for name, of in points.items() if of}


class Renamed(dict):
    """Points by names that a tool has its own way of writing: there must be as many, each with its points."""


def same(tool, theirs, ours, time=lambda us: us, value=lambda value: value):
    """Whether a tool has the run's points, by its precision of time and its way with values."""
    if isinstance(ours, Renamed):  # no two have the same values
        theirs, ours = ({repr(sorted(value for _, _, value in points)): points for points in of.values()}
                        for of in (theirs, ours))
    if set(theirs) != set(ours):
        fail(f"{tool} has other metrics: {sorted(set(theirs) ^ set(ours))}")
    for name, points in ours.items():
        wanted = collections.Counter((step, time(us), repr(value(number))) for step, us, number in points)
        has = collections.Counter((step, us, repr(number)) for step, us, number in theirs[name])
        if has != wanted:
            fail(f"{tool} has {has.total()} points of {name}, of {wanted.total()}; too many: "
                 f"{list((has - wanted).elements())[:2]}, missing: {list((wanted - has).elements())[:2]}")
    print(f"{tool}: {sum(map(len, ours.values()))} points of {len(ours)} metrics, all equal")


# ---- what the tools have, each by its own reader

class MLflow:
    script, words, settings = "to_mlflow.py", (), {}

    def __init__(self, place):
        self.uri = f"sqlite:///{place}/mlflow.db"
        self.settings = {"MLFLOW_TRACKING_URI": self.uri}
        self.database = place / "mlflow.db"

    def run(self):
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("host")
        found = client.search_runs([experiment.experiment_id], "attributes.run_name = 'wild'") if experiment else []
        return client, found[0] if len(found) == 1 else None

    def points(self):
        client, found = self.run()
        return {name: [(point.step, point.timestamp, point.value) for point in client.get_metric_history(found.info.run_id, name)]
                for name in found.data.metrics}

    def check(self, ours):
        same("MLflow", self.points(), ours, lambda us: us // 1000,
             lambda value: math.copysign(sys.float_info.max, value) if math.isinf(value) else value)
        data = self.run()[1].data
        if data.params.get("model") != "tiny" or data.params.get("plugin/perplexity/id") != "perplexity":
            fail(f"MLflow has the parameters {data.params}")
        if not data.tags.get("checkpoint", "").startswith("step-") or "delivery.local-disk" not in data.tags:
            fail(f"MLflow has the tags {data.tags}")

    def status(self):
        return self.run()[1].info.status

    def step(self):
        """How far it is, while it is being written to."""
        if not self.database.exists():
            return 0
        with contextlib.suppress(sqlite3.OperationalError):  # its tables are being made
            with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database:
                return database.execute("select max(step) from metrics where key = 'loss/train'").fetchone()[0] or 0
        return 0


class Wandb:
    script, words = "to_wandb.py", ()

    def __init__(self, place):
        place.mkdir(parents=True)
        self.place = place / "wandb"
        self.settings = {"WANDB_MODE": "offline", "WANDB_DIR": place}

    def records(self):
        """What `wandb sync` would send of the newest take: its files are LevelDB's log format, with W&B's messages."""
        from wandb.proto import wandb_internal_pb2

        kept = next(self.place.glob("*.json"))
        take = f"{kept.stem}-{json.loads(kept.read_text())['take']}"
        for path in sorted(self.place.glob(f"offline-run-*-{take}/run-{take}.wandb")):
            data, at, parts = path.read_bytes(), 7, b""
            while at + 7 <= len(data):
                if 32768 - at % 32768 < 7:
                    at += 32768 - at % 32768
                    continue
                size, kind = struct.unpack_from("<HB", data, at + 4)
                parts, at = parts + data[at + 7:at + 7 + size], at + 7 + size
                if kind in (1, 4):  # whole, or its last part
                    yield wandb_internal_pb2.Record.FromString(parts)
                    parts = b""

    def check(self, ours):
        theirs, config, summary, last = collections.defaultdict(list), {}, {}, 0
        for record in self.records():
            for item in [*record.run.config.update, *record.config.update]:
                config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = item.value_json
            if record.WhichOneof("record_type") == "run" and record.run.display_name != "wild":
                fail(f"W&B has the run's name as {record.run.display_name}")
            if record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                if record.history.step.num <= last:
                    fail(f"W&B would drop step {record.history.step.num} after {last}")
                last = record.history.step.num
                for name, value in row.items():
                    if name != "step" and not name.startswith("_"):
                        theirs[name].append((row["step"], round(row["_timestamp"] * 1e6), float(value)))
        same("W&B", theirs, ours)
        if config.get("model") != "tiny" or "perplexity" not in config.get("plugin", {}):
            fail(f"W&B has the configuration {config}")
        if "checkpoint" not in summary:
            fail(f"W&B has the summary {summary}")

    def step(self):
        kept = next(self.place.glob("*.json"), None)
        return json.loads(kept.read_text() or "{}").get("cursor", 0) if kept else 0


class Trackio:
    script, words = "to_trackio.py", ("--project", "peers")

    def __init__(self, place):
        self.place = place
        self.settings = {"TRACKIO_DIR": place}

    def rows(self):
        """By a process of its own: trackio takes its folder when it is imported."""
        code = ("import json; from trackio import Api; from trackio.sqlite_storage import SQLiteStorage as s\n"
                "runs = [(run.name, run.id, run.config) for run in Api().runs('peers')]\n"
                "print(json.dumps([runs, s.get_logs('peers', runs[0][0], run_id=runs[0][1]) if runs else []], default=str))")
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRACKIO_DIR": str(self.place)},
                              check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    def check(self, ours):
        found, rows = self.rows()
        if [name for name, _, _ in found] != ["wild"] or found[0][2].get("model") != "tiny":
            fail(f"trackio has the runs {found}")
        theirs = collections.defaultdict(list)
        for row in rows:
            us = round(datetime.datetime.fromisoformat(row["timestamp"]).timestamp() * 1e6)
            for name, value in row.items():
                if name not in ("step", "timestamp"):
                    theirs[name].append((row["step"], us, float(value)))
        same("trackio", theirs, ours)

    def step(self):
        if not (self.place / "peers.db").exists():
            return 0
        with contextlib.suppress(sqlite3.OperationalError):
            with contextlib.closing(sqlite3.connect(self.place / "peers.db", timeout=30)) as database:
                return database.execute("select max(step) from metrics").fetchone()[0] or 0
        return 0


class Prometheus:
    script, words, settings = "to_prometheus.py", ("--port", 0, "--linger", 600), {}
    out = None

    def families(self):
        url = next((word for word in self.out.read_text().split() if word.startswith("http://")), None)
        if not url:
            return []
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(text_string_to_metric_families(answer.read().decode()))

    def value(self, name, **labels):
        return next((sample.value for family in self.families() for sample in family.samples
                     if sample.name == name and labels.items() <= sample.labels.items()), None)

    def check(self, ours):
        wait_for("the end in Prometheus's bridge", lambda: self.value("host_up", run="wild") == 0)
        theirs = {sample.labels["metric"]: repr(sample.value) for family in self.families() for sample in family.samples
                  if "metric" in sample.labels and sample.labels["run"] == "wild"}
        wanted = {name: repr(points[-1][2]) for name, points in ours.items()}
        if theirs != wanted:
            fail(f"Prometheus differs: {sorted(set(theirs.items()) ^ set(wanted.items()))[:4]}")
        if not self.value("host_deliveries_total", sink="local-disk", state="delivered"):
            fail("Prometheus has no deliveries")
        print(f"Prometheus: the last values of {len(wanted)} metrics, all equal")

    def step(self):
        return (self.value("host_step", run="wild") or 0) if self.out and self.out.exists() else 0


class Watch:
    """watch.py and the Rust client print every event: all in order, each once, with the run's values."""

    settings = {}

    def __init__(self, name, form):
        self.name, self.form = name, form

    def check(self, all_events):
        lines = [line for line in self.out.read_text().splitlines() if re.match(r" *\d+  step ", line)]
        if len(lines) != len(all_events):
            fail(f"{self.name} has {len(lines)} events, of {len(all_events)}")
        for place, (line, event) in enumerate(zip(lines, all_events), 1):
            seq, _, step, rest = line.split(maxsplit=3)
            words = rest.split()
            values = {name: float(value) for name, value in (event.get("values") or {}).items()}
            wanted = {name: format(value, self.form).lower() for name, value in values.items()}
            if (int(seq), int(step)) != (place, event["step"]) or values and \
                    {name: value.lower() for name, value in zip(words[::2], words[1::2])} != wanted:
                fail(f"{self.name} has {line!r} for {event}")
        print(f"{self.name}: {len(lines)} events, all equal")

    def step(self):
        lines = [line for line in self.out.read_text().splitlines() if "  step " in line] if self.out.exists() else []
        return int(lines[-1].split()[2]) if lines else 0


def python(script):
    return [sys.executable, clients / "python" / script]


def bridges(place):
    return [MLflow(place / "mlflow"), Wandb(place / "wandb"), Trackio(place / "trackio"), Prometheus()]


def follow(stack, bridge, address, name):
    """Starts a bridge; its process."""
    bridge.out = folder / f"{name}-{bridge.script}.out"
    return stack.enter_context(running([*python(bridge.script), address, *bridge.words], bridge.out, **bridge.settings))


def ended(name, process, out):
    if process.wait(timeout=300) != 0:
        fail(f"{name} ended with {process.returncode}: {out.read_text()[-2000:]}")


def check_all(all_bridges, address, name, ours):
    """All bridges at once over what the server has, to their end, and what their tools have then."""
    print(f"-- {name}")
    with contextlib.ExitStack() as stack:
        for bridge, process in [(bridge, follow(stack, bridge, address, name)) for bridge in all_bridges]:
            if bridge.script != Prometheus.script:
                ended(bridge.script, process, bridge.out)
            bridge.check(ours)


# ---- the README's lines for grpcurl

def call(channel, pool, method, body, metadata=()):
    """A call as grpcurl makes it, by what the server's reflection says of the method; the answers."""
    service, _, name = method.rpartition("/")
    about = pool.FindServiceByName(service).FindMethodByName(name)
    request, answer = map(message_factory.GetMessageClass, (about.input_type, about.output_type))
    begin = channel.unary_stream if about.server_streaming else channel.unary_unary
    done = begin(f"/{method}", request.SerializeToString, answer.FromString)(
        json_format.Parse(body, request()), metadata=metadata, timeout=60)
    return list(done) if about.server_streaming else [done]


def readme(address):
    """Each line of the README does something: by grpcurl itself, where there is one, else by the server's reflection."""
    text = (clients / "README.md").read_text().replace('"demo"', '"wild"')
    lines = [shlex.split(line.replace("$ADDRESS", address)) for line in text.splitlines() if line.startswith("grpcurl ")]
    if len(lines) < 8:
        fail(f"the README has {len(lines)} lines for grpcurl")
    program = shutil.which("grpcurl")
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(database := ProtoReflectionDescriptorDatabase(channel))
        for words in lines:
            if program:
                done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=60)
                if done.returncode != 0 or not done.stdout:
                    fail(f"{shlex.join(words)}: {done.stderr}")
                continue
            body = words.pop(words.index("-d") + 1) if "-d" in words else "{}"
            words = [word for word in words[1:] if word not in ("-d", "-plaintext")]
            if words[0] != address:
                fail(f"the README has a line of another form: {words}")
            match words[1:]:
                case ["list"]:
                    good = {"tracker.v1.TrackerService", "grpc.health.v1.Health"} <= set(database.get_services())
                case ["describe", name]:
                    good = pool.FindServiceByName(name).methods
                case [method]:
                    good = call(channel, pool, method, body)
            if not good:
                fail(f"the README's {shlex.join(words)} gives nothing")
    print(f"{program or 'reflection'}: the README's {len(lines)} lines for grpcurl")


# ---- one error

def wrong_address(all_bridges):
    tries = [(bridge.script, bridge.settings, ["127.0.0.1:1"], "127.0.0.1:1") for bridge in all_bridges]
    tries += [("watch.py", {}, ["127.0.0.1:1"], "127.0.0.1:1"),
              ("watch.py", {}, ["gpu1:6006", "--token-env", "HOME"], "in the clear")]
    for script, settings, words, about in tries:
        done = subprocess.run([*map(str, python(script)), *words], capture_output=True, text=True, timeout=120,
                              env=os.environ | {key: str(value) for key, value in settings.items()})
        lines = done.stderr.strip().splitlines()
        if done.returncode != 1 or [line.split()[0] for line in lines] != ["error:", "hint:"] or about not in lines[0]:
            fail(f"{script} {words} ended with {done.returncode}: {done.stderr}")
    print("a wrong address, and a token in the clear: an error and a hint each")


# ---- a resume under a watcher's eyes

def resume_while_watched():
    """A piece that supersedes what was given makes the bridges start over; one that takes nothing away does not."""
    sys.path.insert(0, str(clients / "python"))
    import host_run

    def log(*steps_and_cuts):
        for seq, (step, cut) in enumerate(steps_and_cuts, 1):
            body = {"superseded": {"from_step": step}} if cut else {"metrics": {"values": [{"name": "m", "value": seq}]}}
            yield host_run.pb.Event(seq=seq, step=step, **body)

    class Scripted(host_run.Run):
        def __init__(self, known, log):
            self.known, self.log = known, log  # the first `known` events are there when the watch begins

        def watch(self, after=0, follow=True):
            until = len(self.log) if follow else max(self.known, after)
            for event in self.log[after:until]:
                yield host_run.pb.WatchEventsResponse(events=[event], cursor=event.seq)
                self.known = max(self.known, event.seq)

    def kept(known, after, *what):
        points, over = [f"kept {after}"] if after else [], 0
        for batch in Scripted(known, list(log(*what))).batches(after):
            if batch.start_over:
                points, over = [], over + 1
            points += [event.seq for event in batch.metrics]
        return points, over

    point, cut = (lambda step: (step, False)), (lambda step: (step, True))
    back = [point(1), point(2), point(3), cut(1), point(2), point(3)]
    for known, after, what, wanted in (
            (6, 0, back, ([1, 5, 6], 0)),  # it was over before
            (6, 3, back, ([1, 5, 6], 1)),  # 2 and 3 were given by an earlier call
            (6, 4, back, (["kept 4", 5, 6], 0)),  # it was given that, too
            (6, 3, [point(1), point(2), point(3), cut(3), point(4)], (["kept 3", 5], 0)),  # nothing was taken away
            (5, 0, [*back, cut(2), point(3)], ([1, 5, 8], None))):  # it happens while the watch goes on
        points, over = kept(known, after, *what)
        if points != wanted[0] or wanted[1] not in (over, None):
            fail(f"after {after} a bridge is left with {points}, begun again {over} times, and not {wanted}")
    print("a resume while it is watched: what counts, each once")


# ---- names that tools do not take, and a server that is killed

NAMES = ["a//b", "/a", "a/", "", ".", "..", "a/../b", "a@b", "a#b", "a_b", "a b", "x:y", "步", "step", "up", "events",
         "events_total", "deliveries_total", "checkpoint", "trouble", "delivery.local-disk", "_timestamp", "_step", "__x",
         "time", "timestamp", "metrics", "run", "lo*ss", "a.b", "a\\b", "n" * 300, "n" * 299 + "m", "loss/train", "::",
         ":2f:", "last_event_timestamp_seconds", "up_metric"]


def hard_names_and_a_kill():
    """Each name has its points in each tool. When the server is killed, no tool is left with a run at work."""
    at = 1_700_000_000_000_000
    points = {name: [(step, at + step * 1_000_000, 100.0 * place + step) for step in (1, 2, 3)]
              for place, name in enumerate(NAMES)}
    said = folder / "fake.out"
    stack = contextlib.ExitStack()
    with stack:
        server = stack.enter_context(running([sys.executable, root / "tests" / "peers" / "fake_run.py", json.dumps(points)], said))
        address = wait_for("the fake run", lambda: re.search(r"127\.0\.0\.1:\d+", said.read_text())).group()
        all_bridges = bridges(folder / "names")
        at_work = [(bridge, follow(stack, bridge, address, "names")) for bridge in all_bridges]
        for bridge, _ in at_work:
            wait_for(f"step 3 in {type(bridge).__name__}", lambda: bridge.step() >= 3)
        for tool in at_work[0][0].status(), at_work[-1][0].value("host_up", run="wild"):
            if tool not in ("RUNNING", 1):
                fail(f"the fake run is at work, and a tool has it as {tool}")
        server.kill()
        for bridge, process in at_work:
            if isinstance(bridge, Prometheus):
                wait_for("host_up 0", lambda: bridge.value("host_up", run="wild") == 0)
            elif process.wait(timeout=300) != 1 or "\nhint: " not in bridge.out.read_text():
                fail(f"{bridge.script} ended with {process.returncode}: {bridge.out.read_text()[-2000:]}")
            bridge.check(points if isinstance(bridge, Prometheus) else Renamed(points))
            notes = [line for line in bridge.out.read_text().splitlines() if line.startswith("note: ")]
            if not notes or len(set(notes)) != len(notes):
                fail(f"{bridge.script} does not tell each changed name once: {notes}")
    if all_bridges[0].status() != "FAILED":
        fail(f"MLflow has a run whose process was killed as {all_bridges[0].status()}")
    print(f"{len(NAMES)} names that tools do not take, and a kill: each has its points, and no run is left at work")


folder.mkdir(parents=True, exist_ok=True)
train = [host, "run", "--json", "--data", root / "host" / "core" / "src", "--extensions", "rs", "--valid-every", 3, "--model", "tiny",
         "--vocab-size", 300, "--seq-length", 32, "--train-batch-size", 4, "--valid-batch-size", 4, "--max-eval-steps", 2,
         "--gradient-accumulation-steps", 1, "--num-warmup-steps", 1, "--learning-rate", 1e3, "--max-grad-norm", 0,
         "--on-nonfinite", "continue", "--max-train-steps", 1_000_000, "--save-checkpoint-steps", 2, "--keep-checkpoints", 1000,
         "--system-metrics-secs", 1, "--runs-dir", runs, "--name", "wild", "--device", "cpu", "--plugin", "perplexity",
         "--plugin", f"local-disk:dir={folder}/checkpoints,keep=1"]
resume_while_watched()
hard_names_and_a_kill()
first = bridges(folder / "first")
wrong_address(first)
watchers = [Watch("watch.py", ".6g"), Watch("the Rust client", ".6f")]
print("-- live")
with contextlib.ExitStack() as stack:
    said = folder / "run.out"
    process = stack.enter_context(running(train, said))
    address = live_address(runs, "wild")
    wait_for("step 40", lambda: '"step":40,' in said.read_text().replace(" ", ""))
    # The clients take seconds to begin: the run waits for them, or it would be thousands of steps away.
    run("control", "wild", "pause", "--reason", "the clients come", "--runs-dir", runs)
    at_work = [(bridge, follow(stack, bridge, address, "live")) for bridge in first]
    for watcher, command in zip(watchers, ([*python("watch.py"), address], [rust, address])):
        watcher.out = folder / f"{watcher.name.replace(' ', '-')}.out"
        at_work.append((watcher, stack.enter_context(running(command, watcher.out))))
    paused_at = {}
    for follower, _ in at_work:
        paused_at[follower] = wait_for(f"{type(follower).__name__} live", follower.step)
    run("control", "wild", "continue", "--runs-dir", runs)
    for follower, _ in at_work:
        wait_for(f"growth in {type(follower).__name__}", lambda: follower.step() > paused_at[follower])
    process.send_signal(signal.SIGINT)
    if process.wait() != INTERRUPTED:
        fail(f"the run ended with {process.returncode}: {said.read_text()[-2000:]}")
    history = events(said.read_text())
    for follower, child in at_work:
        if not isinstance(follower, Prometheus):
            ended(type(follower).__name__, child, follower.out)
        follower.check(history if isinstance(follower, Watch) else that_count(history))
    if first[0].status() != "KILLED":
        fail(f"MLflow has the run as {first[0].status()}")
flat = [value for of in that_count(history).values() for _, _, value in of]
if not any(map(math.isnan, flat)) or not any(map(math.isinf, flat)):
    fail("the comparison shows nothing: every value is a number")

last = max(event["step"] for event in history)
history += events(run("resume", runs / "wild", "--json", "--from", "step-000020", "--max-train-steps", 60))
if last <= 20:
    fail(f"the comparison shows nothing: the run came to step {last} only")
ours = that_count(history)
with serving(host, runs, folder / "serve.out") as address:
    check_all(first, address, "resumed from an older checkpoint", ours)
    check_all(first, address, "once more", ours)
    if first[0].status() != "FINISHED":
        fail(f"MLflow has the run as {first[0].status()}")
    check_all(bridges(folder / "fresh"), address, "afterwards", ours)
    readme(address)
