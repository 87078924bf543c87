"""Tests the clients in examples/clients, which are called bridges here. The test uses the tools that the bridges write
to: MLflow, W&B, trackio and Prometheus's parser.

All clients follow a live run at the same time. The run diverges, so some of its values are infinite or NaN. It is
interrupted, and then resumed from an older checkpoint, so some written points no longer count. The same clients then
read the run twice through `host serve`. The second time must change nothing. Finally, new clients read the run.
Each time, each tool's own reader must return all points that the run printed, with the same steps, times and values.
Usage: bridges.py HOST FOLDER. The Rust client is beside HOST in examples/.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys

from program import fail, live_address, running, serving, wait_for
from run_events import events, that_count
from trackers import Prometheus, Renamed, bridges
from training import DIVERGING, training
from watchers import Watch

INTERRUPTED = 130  # exit code of a run that was interrupted by Ctrl-C
root = pathlib.Path(__file__).resolve().parents[2]
host, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
clients, runs = root / "examples" / "clients", folder / "runs"
rust = host.parent / "examples" / "watch"


def run(*words):
    done = subprocess.run([str(word) for word in (host, *words)], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


# ---- the bridges


def python(script):
    return [sys.executable, clients / "python" / script]


def follow(stack, bridge, address, name):
    """Starts a bridge and returns its process."""
    bridge.out = folder / f"{name}-{bridge.script}.out"
    return stack.enter_context(
        running([*python(bridge.script), address, *bridge.words], bridge.out, **bridge.settings)
    )


def ended(name, process, out):
    if process.wait(timeout=300) != 0:
        fail(f"{name} ended with {process.returncode}: {out.read_text()[-2000:]}")


def check_all(all_bridges, address, name, ours):
    """Runs all bridges at the same time until they end, and checks the points in their tools."""
    print(f"-- {name}")
    with contextlib.ExitStack() as stack:
        for bridge, process in [(bridge, follow(stack, bridge, address, name)) for bridge in all_bridges]:
            if bridge.script != Prometheus.script:
                ended(bridge.script, process, bridge.out)
            bridge.check(ours)


# ---- errors


def wrong_address(all_bridges):
    tries = [(bridge.script, bridge.settings, ["127.0.0.1:1"], "127.0.0.1:1") for bridge in all_bridges]
    tries += [
        ("watch.py", {}, ["127.0.0.1:1"], "127.0.0.1:1"),
        ("watch.py", {}, ["gpu1:6006", "--token-env", "HOME"], "unencrypted"),
    ]
    for script, settings, words, about in tries:
        done = subprocess.run(
            [*map(str, python(script)), *words],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {key: str(value) for key, value in settings.items()},
        )
        lines = done.stderr.strip().splitlines()
        if (
            done.returncode != 1
            or [line.split()[0] for line in lines] != ["error:", "hint:"]
            or about not in lines[0]
        ):
            fail(f"{script} {words} ended with {done.returncode}: {done.stderr}")
    print("a wrong address, and an unencrypted token: an error and a hint each")


# ---- a resume during a watch


def resume_while_watched():
    """Checks that bridges start over if, and only if, a resume supersedes events that were already yielded."""
    sys.path.insert(0, str(clients / "python"))
    import host_run

    def log(*steps_and_cuts):
        for seq, (step, cut) in enumerate(steps_and_cuts, 1):
            body = (
                {"superseded": {"from_step": step}}
                if cut
                else {"metrics": {"values": [{"name": "m", "value": seq}]}}
            )
            yield host_run.pb.Event(seq=seq, step=step, **body)

    class Scripted(host_run.Run):
        def __init__(self, known, log):
            self.known, self.log = known, log  # the first `known` events exist when the watch begins

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
        (6, 0, back, ([1, 5, 6], 0)),  # the resume was before the watch
        (6, 3, back, ([1, 5, 6], 1)),  # 2 and 3 were yielded by an earlier call
        (6, 4, back, (["kept 4", 5, 6], 0)),  # the earlier call also yielded the resume
        (
            6,
            3,
            [point(1), point(2), point(3), cut(3), point(4)],
            (["kept 3", 5], 0),
        ),  # no event was superseded
        (5, 0, [*back, cut(2), point(3)], ([1, 5, 8], None)),  # the second resume is during the watch
    ):
        points, over = kept(known, after, *what)
        if points != wanted[0] or wanted[1] not in (over, None):
            fail(f"after cursor {after} a bridge has {points} after {over} restarts, expected {wanted}")
    print("a resume during a watch: each event that counts, once")


# ---- names that tools do not accept, and a killed server

NAMES = [
    "a//b",
    "/a",
    "a/",
    "",
    ".",
    "..",
    "a/../b",
    "a@b",
    "a#b",
    "a_b",
    "a b",
    "x:y",
    "步",
    "step",
    "up",
    "events",
    "events_total",
    "deliveries_total",
    "checkpoint",
    "trouble",
    "delivery.local-disk",
    "_timestamp",
    "_step",
    "__x",
    "time",
    "timestamp",
    "metrics",
    "run",
    "lo*ss",
    "a.b",
    "a\\b",
    "n" * 300,
    "n" * 299 + "m",
    "loss/train",
    "::",
    ":2f:",
    "last_event_timestamp_seconds",
    "up_metric",
]


def hard_names_and_a_kill():
    """Checks that each tool has the points of each name, and that no tool shows the run as live after the
    server is killed."""
    at = 1_700_000_000_000_000
    points = {
        name: [(step, at + step * 1_000_000, 100.0 * place + step) for step in (1, 2, 3)]
        for place, name in enumerate(NAMES)
    }
    said = folder / "fake.out"
    stack = contextlib.ExitStack()
    with stack:
        server = stack.enter_context(
            running([sys.executable, root / "tests" / "peers" / "fake_run.py", json.dumps(points)], said)
        )
        address = wait_for("the fake run", lambda: re.search(r"127\.0\.0\.1:\d+", said.read_text())).group()
        all_bridges = bridges(folder / "names")
        at_work = [(bridge, follow(stack, bridge, address, "names")) for bridge in all_bridges]
        for bridge, _ in at_work:
            wait_for(f"step 3 in {type(bridge).__name__}", lambda: bridge.step() >= 3)
        for tool in at_work[0][0].status(), at_work[-1][0].value("host_up", run="wild"):
            if tool not in ("RUNNING", 1):
                fail(f"the fake run is live, but a tool shows it as {tool}")
        server.kill()
        for bridge, process in at_work:
            if isinstance(bridge, Prometheus):
                wait_for("host_up 0", lambda: bridge.value("host_up", run="wild") == 0)
            elif process.wait(timeout=300) != 1 or "\nhint: " not in bridge.out.read_text():
                fail(f"{bridge.script} ended with {process.returncode}: {bridge.out.read_text()[-2000:]}")
            bridge.check(points if isinstance(bridge, Prometheus) else Renamed(points))
            notes = [line for line in bridge.out.read_text().splitlines() if line.startswith("note: ")]
            if not notes or len(set(notes)) != len(notes):
                fail(f"{bridge.script} does not report each changed name once: {notes}")
    if all_bridges[0].status() != "FAILED":
        fail(f"MLflow shows a run whose process was killed as {all_bridges[0].status()}")
    print(
        f"{len(NAMES)} names that tools do not accept, and a kill: each has its points, and no run is shown as live"
    )


folder.mkdir(parents=True, exist_ok=True)
train = training(
    host,
    runs,
    "wild",
    1_000_000,
    *DIVERGING,
    "--save-checkpoint-steps",
    2,
    "--keep-checkpoints",
    1000,
    "--system-metrics-secs",
    1,
    "--plugin",
    f"local-disk:dir={folder}/checkpoints,keep=1",
)
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
    # Pause the run until the clients have started, which takes seconds. Otherwise, the run would be thousands
    # of steps ahead.
    run("control", "wild", "pause", "--reason", "the clients are starting", "--runs-dir", runs)
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
        fail(f"MLflow shows the run as {first[0].status()}")
flat = [value for of in that_count(history).values() for _, _, value in of]
if not any(map(math.isnan, flat)) or not any(map(math.isinf, flat)):
    fail("the comparison is meaningless: every value is finite")

last = max(event["step"] for event in history)
history += events(run("resume", runs / "wild", "--json", "--from", "step-000020", "--max-train-steps", 60))
if last <= 20:
    fail(f"the comparison is meaningless: the run reached only step {last}")
ours = that_count(history)
with serving(host, runs, folder / "serve.out") as address:
    check_all(first, address, "resumed from an older checkpoint", ours)
    check_all(first, address, "once more", ours)
    if first[0].status() != "FINISHED":
        fail(f"MLflow shows the run as {first[0].status()}")
    check_all(bridges(folder / "fresh"), address, "afterwards", ours)
