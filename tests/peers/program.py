"""Programs at work beside a comparison: they are started, waited for and stopped."""

import contextlib
import os
import re
import subprocess
import sys
import time


def fail(why):
    sys.exit(f"error: {why}")


def wait_for(what, find, seconds=240):
    """What `find` gives, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = find()
        if found:
            return found
        time.sleep(0.1)
    fail(f"{what} did not come in {seconds} s")


@contextlib.contextmanager
def running(command, log, **variables):
    """A program that is stopped at the end, with what it prints in a file."""
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
    """Where a run at work listens."""
    file = runs / name / "grpc.addr"
    return wait_for("the run's address", lambda: file.exists() and file.read_text().strip())


@contextlib.contextmanager
def serving(host, runs, log):
    """`host serve` over a folder of runs: where it listens."""
    with running([host, "serve", "--runs-dir", runs], log):
        yield wait_for("the service", lambda: re.search(r"127\.0\.0\.1:\d+", log.read_text())).group()
