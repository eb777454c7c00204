"""How far kernels move and what becomes of their energy, by method and rate.

From the same runs as `robustness`.
"""

from matplotlib.figure import Figure

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.methods import PUBLISHED

COLUMNS = {
    "block_distance": "‖H − I‖ of the furthest block",
    "kernel_distance": "‖W' − W‖ / ‖W‖, mean of layers",
    "energy_change": "change of the energy, mean of layers",
}


def main(lab):
    methods = lab.options.methods or PUBLISHED
    results = lab.results(lab.grid(methods), "perturbation")
    tables = {
        title: [
            {"method": METHODS[method].label}
            | {
                f"{rate:g}": _cell(lab_lib.mean(runs, key))
                for rate, runs in lab_lib.by_rate(results, method).items()
            }
            for method in methods
        ]
        for key, title in COLUMNS.items()
    }
    lab.conclude(
        "perturbation",
        tables,
        plot(results, methods),
        ["A dash stands where nothing is defined: no block, or NaN."],
    )


def _cell(value):
    return "-" if value is None else f"{value:.3g}"


def plot(results, methods):
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    distance, energy = figure.subplots(1, 2)
    for method in methods:
        color, label = METHODS[method].color, METHODS[method].label
        runs = lab_lib.by_rate(results, method)
        distances = {
            rate: lab_lib.mean(seeds, "kernel_distance")
            for rate, seeds in runs.items()
        }
        points = [(r, d) for r, d in distances.items() if d]
        if points:
            distance.plot(
                *zip(*points, strict=True), marker="o", color=color, label=label
            )
        points = [
            (100 * result["energy_change"], 100 * result["test_accuracy"])
            for result in results
            if result["method"] == method
            and result["energy_change"] is not None
        ]
        if points:
            energy.scatter(
                *zip(*points, strict=True), s=14, color=color, label=label
            )
    distance.set_xscale("log")
    distance.set_yscale("log")
    distance.axhline(2.0, color="black", linewidth=1, linestyle=":")
    distance.set_xlabel("learning rate of Adam")
    distance.set_ylabel(COLUMNS["kernel_distance"])
    distance.legend()
    energy.set_xscale("symlog", linthresh=1e-3)
    energy.set_xlabel("change of the hyperspherical energy, %")
    energy.set_ylabel("test accuracy, %, a point for each run")
    energy.legend()
    figure.suptitle("How far the kernels move")
    return figure
