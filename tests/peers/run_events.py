"""Parses the events that a run printed, and selects the points that no later `superseded` event revokes."""

import collections
import json


def events(said):
    printed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [event for event in printed if "seq" in event]  # leaves out the last line, which is the summary


def that_count(all_events):
    """Returns the points that no later `superseded` event revokes, by metric: (step, time in microseconds, value)."""
    points = collections.defaultdict(list)
    for event in all_events:
        if event.get("kind") == "superseded":
            for of in points.values():
                of[:] = [point for point in of if point[0] <= event["from_step"]]
        for name, value in (event.get("values") or {}).items():
            points[name].append((event["step"], event["time_us"], float(value)))
    return {name: of for name, of in points.items() if of}
