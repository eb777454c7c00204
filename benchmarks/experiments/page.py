"""Tables of benchmarks/RESULTS.md, from the files of finished experiments."""

import json
import pathlib

from benchmarks import report
from benchmarks.experiments.__main__ import EXPERIMENTS
from benchmarks.experiments.__main__ import part_name

PAGE = pathlib.Path(__file__).parents[1] / "RESULTS.md"


def main(results, page=PAGE):
    names = [
        part_name(experiment, dataset)
        for experiment in EXPERIMENTS
        for dataset in ("sst2", "intents")
    ]
    paths = {name: results / f"{name}.json" for name in names}
    finished = {name: path for name, path in paths.items() if path.exists()}
    if not finished:
        raise SystemExit(f"'{results}' has no file of a finished experiment.")
    for experiment, path in finished.items():
        written = json.loads(path.read_text(encoding="utf-8"))
        report.fill(page, experiment, section(written))


def section(written):
    """One experiment's tables, under the command and the environment."""
    parts = [f"`{written['command']}`", report.describe(written["environment"])]
    for title, rows in written["tables"].items():
        parts.append(f"{title}:\n\n{report.markdown(rows)}")
    return "\n\n".join([*parts, *written["notes"]])
