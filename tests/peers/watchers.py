"""Checks the output of a client that prints a run's events: it must contain every event."""

import re

from program import fail


class Watch:
    """Checks watch.py or the Rust client: it must print each event once, in order, with the run's values."""

    settings = {}

    def __init__(self, name, form):
        self.name, self.form = name, form

    def check(self, all_events):
        lines = [line for line in self.out.read_text().splitlines() if re.match(r" *\d+  step ", line)]
        if len(lines) != len(all_events):
            fail(f"{self.name} printed {len(lines)} events instead of {len(all_events)}")
        for place, (line, event) in enumerate(zip(lines, all_events), 1):
            seq, _, step, rest = line.split(maxsplit=3)
            words = rest.split()
            values = {name: float(value) for name, value in (event.get("values") or {}).items()}
            wanted = {name: format(value, self.form).lower() for name, value in values.items()}
            if (
                (int(seq), int(step)) != (place, event["step"])
                or values
                and {name: value.lower() for name, value in zip(words[::2], words[1::2])} != wanted
            ):
                fail(f"{self.name} printed {line!r} for {event}")
        print(f"{self.name}: {len(lines)} events, all equal")

    def step(self):
        lines = (
            [line for line in self.out.read_text().splitlines() if "  step " in line]
            if self.out.exists()
            else []
        )
        return int(lines[-1].split()[2]) if lines else 0
