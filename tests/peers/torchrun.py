"""Several ranks of the host under torchrun, on one host and on two, and when the network fails.

Usage: torchrun.py HOST FOLDER
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from hosts import enter_user_namespace, two_hosts
from program import fail, wait_for

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
STEPS = 60


def training(host, folder, name, *more):
    """Returns the command of a tiny run."""
    arguments = {
        "--data": folder / "data",
        "--model": "tiny",
        "--vocab-size": 300,
        "--seq-length": 32,
        "--train-batch-size": 2,
        "--gradient-accumulation-steps": 2,
        "--lr-scheduler-type": "constant_with_warmup",
        "--num-warmup-steps": 2,
        "--max-train-steps": STEPS,
        "--save-checkpoint-steps": 20,
        "--max-eval-steps": 4,
        "--device": "cpu",
        "--runs-dir": folder / "runs",
        "--name": name,
        "--resume": "auto",
    }
    words = [word for pair in arguments.items() for word in pair]
    return [host, "run", *words, *more]


def write_corpus(folder):
    folder.mkdir(parents=True)
    for file in range(40):
        lines = (
            f"fn f_{file * 7 % 11}(x: u32) -> u32 {{\n    x * {line % 13} + {line}\n}}\n"
            for line in range(40)
        )
        (folder / f"{file}.rs").write_text("".join(lines))


def manifest(folder, name):
    return (folder / "runs" / name / "checkpoints" / f"step-{STEPS:06}" / "manifest.json").read_text()


def finish(process, log, seconds=240):
    """Waits until a program ends, and returns its exit code."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        fail(f"it does not end; its output:\n{log.read_text()}")


def run(command, log):
    """Runs a program to its end. It must succeed."""
    with open(log, "w") as out:
        code = subprocess.run(
            [str(word) for word in command], stdout=out, stderr=subprocess.STDOUT, check=False
        )
    if code.returncode != 0:
        fail(f"exit code {code.returncode}:\n{log.read_text()}")
    return log.read_text()


def one_host(host, folder):
    """A rank is killed. torchrun restarts all ranks, and they resume exactly."""
    launcher = [*TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", 3]
    text = run([*launcher, *training(host, folder, "whole")], folder / "whole.log")
    if "3 ranks on 1 machine; 12 sequences per step" not in text:
        fail(f"the ranks are not printed:\n{text}")
    for victim in range(3):
        name = f"killed-{victim}"
        log = folder / f"{name}.log"
        words = [*launcher, "--max-restarts", 1, *training(host, folder, name)]
        with open(log, "w") as out:
            process = subprocess.Popen([str(word) for word in words], stdout=out, stderr=subprocess.STDOUT)
        checkpoint = folder / "runs" / name / "checkpoints" / "step-000020"
        wait_for("the first checkpoint", checkpoint.exists)
        kill_rank(name, victim)
        if finish(process, log) != 0:
            fail(f"{name} failed:\n{log.read_text()}")
        if "resuming from step " not in log.read_text():
            fail(f"{name} was not resumed:\n{log.read_text()}")
        if manifest(folder, name) != manifest(folder, "whole"):
            fail(f"the result of {name} differs from that of an undisturbed run")
    print("torchrun, one host: three ranks, each killed once, resume exactly")


def kill_rank(name, rank):
    """Kills the process of a run with this rank."""
    for process in pathlib.Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if b"run" in words and name.encode() in words and f"RANK={rank}".encode() in environment:
            if b"torch.distributed.run" not in words:
                os.kill(int(process.name), signal.SIGKILL)
                return
    fail(f"no process has the rank {rank} of {name}")


def errors(host, folder):
    """torchrun shows the error of the rank that failed."""
    log = folder / "failed.log"
    words = [*TORCHRUN, "--standalone", "--no-python", "--nproc-per-node", 2]
    words += training(host, folder, "failed", "--data", folder / "nowhere")
    with open(log, "w") as out:
        process = subprocess.Popen([str(word) for word in words], stdout=out, stderr=subprocess.STDOUT)
    if finish(process, log) == 0:
        fail("a failed run has the exit code 0")
    table = log.read_text().split("Root Cause")[-1]
    if not re.search(r"rank \d: error: data does not exist", table):
        fail(f"torchrun does not show the error:\n{log.read_text()}")
    print("torchrun: its table shows the error of the rank that failed")


def on_two_hosts(host, folder):
    """The example's script starts two ranks on each of two hosts."""
    root = pathlib.Path(__file__).resolve().parents[2]
    words = dict(zip(*[iter(training(host, folder, "train")[2:])] * 2, strict=True))
    settings = {name.removeprefix("--").replace("-", "_"): value for name, value in words.items()}
    lines = [
        f"{name} = {json.dumps(value if isinstance(value, int) else str(value))}"
        for name, value in settings.items()
    ]
    lines = [line.replace('= "', '= ["') + "]" if line.startswith("data = ") else line for line in lines]
    (folder / "train.toml").write_text("\n".join(lines) + "\n")
    variables = {"TORCHRUN": " ".join(TORCHRUN), "PATH": f"{host.parent}:{os.environ['PATH']}"}
    with two_hosts(folder) as hosts:
        runs = []
        for place in hosts:
            log = folder / f"{place.name}.log"
            words = [root / "examples/cluster/torchrun.sh", hosts[0].name]
            runs.append((place.start(words, log, folder, **variables), log))
        for process, log in runs:
            if finish(process, log) != 0:
                fail(f"exit code {process.returncode}:\n{log.read_text()}")
        text = "".join(log.read_text() for _, log in runs)
        if "4 ranks on 2 machines; 16 sequences per step" not in text:
            fail(f"the ranks are not printed:\n{text}")
        run(
            [
                *TORCHRUN,
                "--standalone",
                "--no-python",
                "--nproc-per-node",
                4,
                *training(host, folder, "four"),
            ],
            folder / "four.log",
        )
        if manifest(folder, "train") != manifest(folder, "four"):
            fail("two hosts with two ranks each give another result than one host with four ranks")
        print("torchrun, two hosts: the result equals that of one host")
        cut_cable(host, folder, *hosts)


def cut_cable(host, folder, a, b):
    """The cable between the hosts is cut. All ranks end within the time limit and name the other side."""
    started = []
    for rank, place in enumerate((a, a, b)):
        log = folder / f"cut-{rank}.log"
        words = training(host, folder, "cut", "--max-train-steps", 1000000, "--rank-timeout-secs", 5)
        place_variables = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": a.address, "MASTER_PORT": 29701}
        started.append((place.start(words, log, **place_variables), log))
    wait_for("a checkpoint", (folder / "runs/cut/checkpoints/step-000040").exists)
    a.run("ip", "link", "set", "cable", "down")
    begin = time.monotonic()
    for rank, (process, log) in enumerate(started):
        if finish(process, log, 60) == 0:
            fail(f"rank {rank} has the exit code 0:\n{log.read_text()}")
        took = time.monotonic() - begin
        if took > 5 + 6:
            fail(f"rank {rank} ended {took:.1f} s after the cut")
        wanted = (
            r"^error: the store at .* has not answered for"
            if rank == 2
            else r"^error: rank 2 \(hostb, process \d+\)"
        )
        if not re.search(wanted, log.read_text(), re.MULTILINE):
            fail(f"rank {rank} does not name the cause:\n{log.read_text()}")
    print(f"two hosts: {took:.1f} s after the cable was cut, all ranks have named the other side")


def main():
    host, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    has_namespaces = enter_user_namespace()
    shutil.rmtree(folder, ignore_errors=True)
    write_corpus(folder / "data")
    one_host(host, folder)
    errors(host, folder)
    if has_namespaces:
        on_two_hosts(host, folder)
    else:
        print("skipped: two hosts, because this machine has no network namespaces")


if __name__ == "__main__":
    main()
