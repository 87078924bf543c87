"""Starts, waits for and stops programs that run during a comparison."""

import contextlib
import os
import re
import subprocess
import sys
import time


def fail(why):
    sys.exit(f"error: {why}")


def wait_for(what, find, seconds=240):
    """Waits until `find` returns a truthy value, and returns the value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = find()
        if found:
            return found
        time.sleep(0.1)
    fail(f"{what}: timed out after {seconds} s")


@contextlib.contextmanager
def running(command, log, **variables):
    """Runs a program with its output in a file, and stops it at the end."""
    with open(log, "w") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {key: str(value) for key, value in variables.items()},
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def live_address(runs, name):
    """Returns the address of a live run."""
    file = runs / name / "grpc.addr"
    return wait_for("the run's address", lambda: file.exists() and file.read_text().strip())


@contextlib.contextmanager
def serving(host, runs, log):
    """Runs `host serve` for a folder of runs. Yields the address of the service."""
    with running([host, "serve", "--runs-dir", runs], log):
        yield wait_for("the service", lambda: re.search(r"127\.0\.0\.1:\d+", log.read_text())).group()
