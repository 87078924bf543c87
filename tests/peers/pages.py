"""Runs the commands of the pages that need other programs: grpcurl, TensorBoard, Python's protoc. tests/it/pages.rs runs
all other commands. Usage: pages.py HOST FOLDER.

The commands run in one folder, in which the runs `demo`, `mine` and `controlled` are training."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

from board import get
from program import fail, live_address, running, wait_for
from training import training

# Also listed in tests/it/pages/block.rs.
PROGRAMS = ("grpcurl", "tensorboard", "python3")
root = pathlib.Path(__file__).resolve().parents[2]
host, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()


def blocks():
    """Finds the blocks of shell commands that need one of the programs. Yields (page, block)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]
    pages = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split()
    for page in pages:
        for block in re.findall(r"^```sh\n(.*?)^```$", (root / page).read_text(), re.S | re.M):
            if any(line.startswith(PROGRAMS) for line in block.splitlines()):
                yield page, block


def install():
    """Makes a folder that contains the programs under the names that the pages use. Returns a PATH that starts with
    this folder."""
    path = folder / "bin"
    path.mkdir(parents=True)
    (path / "host").symlink_to(host)
    scripts = {"tensorboard": '-m tensorboard.main --host=127.0.0.1 --port=0 "$@"'}
    if not shutil.which("grpcurl"):
        scripts["grpcurl"] = f'{root}/tests/peers/grpcurl.py "$@"'
    for name, arguments in scripts.items():
        (path / name).write_text(f"#!/bin/sh\nexec {sys.executable} {arguments}\n")
        (path / name).chmod(0o755)
    return f"{path}:{os.environ['PATH']}"


def run(page, block, environment):
    """Runs a block. Each call of grpcurl must print something."""
    # Joins continued lines, and checks the output of each call.
    script = re.sub(r"\\\n\s*", "", block)
    script, calls = re.subn(r"^(grpcurl .*)$", r'printed=$(\1); test -n "$printed"', script, flags=re.M)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        fail(f"{page}:\n{script}{done.stdout}{done.stderr}")
    print(f"{page}: {calls} calls of grpcurl" if calls else f"{page}: {block.splitlines()[0]}")


def show_in_tensorboard(page, block, environment):
    """Runs a block that starts TensorBoard, until TensorBoard lists both runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Replaces the port in the block, because another program on this machine can be using it.
    script = folder / "tensorboard.sh"
    script.write_text(f"trap 'kill $(jobs -p)' TERM\n{block.replace('50051', str(port)).rstrip()} & wait\n")
    log = folder / "tensorboard.log"
    command = ["bash", "-eu", script]
    with contextlib.chdir(folder), running(command, log, **environment):
        address = wait_for("TensorBoard", lambda: re.search(r"http://([^/\s]+)/", log.read_text())).group(1)
        wait_for("the runs", lambda: {"demo", "mine"} <= set(get(address, "data/runs")))
    print(f"{page}: TensorBoard shows the runs")


environment = os.environ | {"PATH": install()}
# The protoc command in a page reads the folder `proto` in the current folder.
(folder / "proto").symlink_to(root / "proto")
with contextlib.ExitStack() as stack:
    runs = folder / "runs"
    for name in ("demo", "mine", "controlled"):
        stack.enter_context(running(training(host, runs, name, 1_000_000), folder / f"{name}.out"))
        live_address(runs, name)
        wait_for("a step", lambda name=name: '"step"' in (folder / f"{name}.out").read_text())
    todo = list(blocks())
    for page, block in todo:
        (show_in_tensorboard if "tensorboard" in block else run)(page, block, environment)
if len(todo) < 5 or not (folder / "tracker" / "v1" / "tracker_pb2_grpc.py").exists():
    fail(f"the pages have only {len(todo)} blocks with other programs")
