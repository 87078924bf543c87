"""Measures the cost of sinks within one run. The run's sink processes are alternately stopped and continued. If the
machine has other load for longer than a few seconds, the load affects both phases equally."""

import contextlib
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

# In the first five and the last five steps of a group, the sinks are stopped. In the other steps, they run.
GROUP, BEGIN, END = 20, 5, 15


class Alternation:
    """One run of `warm` steps, `groups` groups of steps, and one more step. It has three results.
    `ratios`: for each group, the time of a step with running sinks, divided by the time with stopped sinks.
    `sending`: the part of the sinks' running time during which a checkpoint was being sent, as a fraction.
    `delivered`: the number of delivered checkpoints."""

    def __init__(self, command, warm, groups):
        self.at_work = [[] for _ in range(groups)]
        self.stopped = [[] for _ in range(groups)]
        self.periods, self.sends, self.delivered = [], {}, 0
        with tempfile.TemporaryFile("w+") as said:
            self.host = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "2"},
            )
            with self.host, contextlib.ExitStack() as end:
                end.callback(self.signal, signal.SIGCONT)  # even if the run fails
                for line in self.host.stdout:
                    event = json.loads(line)
                    if event.get("kind") == "delivery":
                        self.delivery(event)
                    elif "step_secs" in event.get("values", {}) and event["step"] > warm:
                        self.step(event["step"] - warm - 1, event)
            if self.host.returncode != 0:
                said.seek(0)
                sys.exit(f"error: {command[0]} ended with {self.host.returncode}: {said.read()[-2000:]}")
        self.ratios = [
            statistics.mean(ours) / statistics.mean(base) for ours, base in zip(self.at_work, self.stopped)
        ]
        common = sum(
            max(0, min(end, until) - max(begin, since))
            for begin, end in self.periods
            for since, until in self.sends.values()
        )
        self.sending = common / sum(end - begin for begin, end in self.periods)

    def step(self, step, event):
        """Handles the end of a step. If the sinks are stopped or continued at the end of a step, this step counts for
        neither phase."""
        group, of_group = divmod(step, GROUP)
        now = event["time_us"]
        if group == len(self.stopped):
            self.signal(signal.SIGCONT)  # at the end, deliver all waiting checkpoints
        elif of_group == BEGIN:
            self.signal(signal.SIGCONT)
            self.begun = now
        elif of_group == END:
            self.signal(signal.SIGSTOP)
            self.periods.append((self.begun, now))
        elif step == 0:
            self.signal(signal.SIGSTOP)
        else:
            side = self.at_work if BEGIN < of_group < END else self.stopped
            side[group].append(event["values"]["step_secs"])

    def delivery(self, event):
        key, now = (event["sink"], event["checkpoint"]), event["time_us"]
        if event["state"] == "failed":
            self.host.kill()
            sys.exit(f"error: {event['sink']} failed: {event['detail']}")
        if event["state"] == "sending":
            self.sends[key] = (now, math.inf)
        elif event["state"] == "delivered":
            self.sends[key] = (self.sends[key][0], now)
            self.delivered += 1

    def signal(self, what):
        """Sends a signal to the sinks' processes and all their descendants."""
        found = children(self.host.pid)
        while found:
            process = found.pop()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)
            found += children(process)


def children(process):
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def mean_ratio(ratios):
    """Returns the geometric mean and its 95 % confidence interval."""
    logs = [math.log(ratio) for ratio in ratios]
    mean, error = statistics.mean(logs), 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    return [math.exp(mean + side * error) for side in (0, -1, 1)]
