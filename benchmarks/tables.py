"""Tables and plots of benchmarks/README.md, from the files of results."""

import json
import pathlib

import matplotlib

from benchmarks import report

matplotlib.use("agg")

from matplotlib import pyplot as plt

HERE = pathlib.Path(__file__).parent
LABELS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
COLORS = {"jax": "#1b7f79", "tensorflow": "#e08a1e", "torch": "#a03c5b"}


def main(args):
    runs = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(args.results.glob("*.json"))
    }
    parts = []
    for name, run in runs.items():
        parts.append(f"### {name}\n\n{report.describe(run['environment'])}")
        for title, rows in run["tables"].items():
            parts.append(f"{title}:\n\n{report.markdown(rows)}")
    report.fill(HERE / "README.md", "tables", "\n\n".join(parts))
    steps = {
        backend: next(iter(runs[f"train-minilm-{backend}"]["tables"].values()))
        for backend in LABELS
        if f"train-minilm-{backend}" in runs
    }
    by_method(steps, HERE / "step_time_by_method.png")
    by_blocks(steps, HERE / "step_time_by_blocks.png")


def by_method(steps, path):
    """Bars: each method's step over the limit, a colour per backend."""
    methods = [row["method"] for row in next(iter(steps.values()))][1:]
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    height = 0.8 / len(steps)
    for i, (backend, rows) in enumerate(steps.items()):
        ratios = {row["method"]: row for row in rows}
        places = [m + i * height for m in range(len(methods))]
        values = [ratios[m]["ratio"] for m in methods]
        spread = [
            [max(0, r["ratio"] - r["quartiles"][0]) for r in rows[1:]],
            [max(0, r["quartiles"][1] - r["ratio"]) for r in rows[1:]],
        ]
        axes.barh(
            places,
            values,
            height,
            xerr=spread,
            color=COLORS[backend],
            label=LABELS[backend],
            error_kw={"linewidth": 0.8, "ecolor": "#444444"},
        )
    axes.set_yticks(
        [m + height * (len(steps) - 1) / 2 for m in range(len(methods))],
        methods,
    )
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("training step over that of a frozen model (limit = 1)")
    axes.set_title("Step time by method, MiniLM's size, all linear maps, CPU")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def by_blocks(steps, path):
    """Lines: step over the limit by the number of blocks."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for backend, rows in steps.items():
        for method, style in (("ETHER", "-"), ("ETHER+", "--")):
            points = [
                (int(row["method"].partition("=")[2]), row["ratio"])
                for row in rows
                if row["method"].startswith(f"{method} n=")
            ]
            axes.plot(
                *zip(*points, strict=True),
                style,
                marker="o",
                color=COLORS[backend],
                label=f"{method}, {LABELS[backend]}",
            )
    axes.set_xscale("log", base=2)
    ticks = [1, 2, 4, 8, 16, 32]
    axes.set_xticks(ticks, map(str, ticks))
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xlabel("blocks")
    axes.set_ylabel("training step over the limit")
    axes.set_title("Cost by the number of blocks, MiniLM's size, CPU")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
