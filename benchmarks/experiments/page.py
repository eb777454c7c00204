"""Tables of benchmarks/RESULTS.md, from the files of finished tasks."""

import json
import pathlib

from benchmarks import report
from benchmarks.experiments.__main__ import NAMES

PAGE = pathlib.Path(__file__).parents[1] / "RESULTS.md"


def main(results, page=PAGE):
    paths = {name: results / f"{name}.json" for name in NAMES}
    finished = {name: path for name, path in paths.items() if path.exists()}
    if not finished:
        raise SystemExit(f"'{results}' has no file of a finished task.")
    for task, path in finished.items():
        written = json.loads(path.read_text(encoding="utf-8"))
        report.fill(page, task, section(written))


def section(written):
    """One task's tables, under the command and the environment."""
    parts = [f"`{written['command']}`", report.describe(written["environment"])]
    for title, rows in written["tables"].items():
        parts.append(f"{title}:\n\n{report.markdown(rows)}")
    return "\n\n".join([*parts, *written["notes"]])
