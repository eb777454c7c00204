"""Tables of benchmarks/RESULTS.md, from the files of finished experiments."""

import json
import pathlib

from benchmarks import report
from benchmarks.experiments.__main__ import EXPERIMENTS

PAGE = pathlib.Path(__file__).parents[1] / "RESULTS.md"


def main(results, page=PAGE):
    for experiment in EXPERIMENTS:
        path = results / f"{experiment}.json"
        if path.exists():
            written = json.loads(path.read_text(encoding="utf-8"))
            report.fill(page, experiment, section(written))


def section(written):
    """One experiment's tables, under the command and the environment."""
    parts = [f"`{written['command']}`", report.describe(written["environment"])]
    for title, rows in written["tables"].items():
        parts.append(f"{title}:\n\n{report.markdown(rows)}")
    return "\n\n".join([*parts, *written["notes"]])
