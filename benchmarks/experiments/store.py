"""Results on disk: one JSON line for each finished run, by its settings."""

import json


class Store:
    """Finished runs, so that none is done twice.

    Args:
        path: Path of the file. A line cut off by an interruption is dropped.
    """

    def __init__(self, path):
        self.path = path
        self.runs = {}
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for line in whole.splitlines():
            record = json.loads(line)
            self.runs[key(record["settings"])] = record

    def find(self, settings):
        """The record of a run with these settings, or `None`."""
        return self.runs.get(key(settings))

    def add(self, settings, measured, environment):
        """Writes a finished run."""
        record = {
            "settings": settings,
            "measured": measured,
            "environment": environment,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # NaN is no JSON: what could not be measured is None.
            file.write(json.dumps(record, allow_nan=False) + "\n")
        self.runs[key(settings)] = record


def key(settings):
    return json.dumps(settings, sort_keys=True)
