"""Accuracy by epoch at each method's best rate: who learns in fewer steps.

By the sentences that rates are chosen by, since these are what a run tests
with after each epoch. From the same runs as `robustness`.
"""

from matplotlib.figure import Figure

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.robustness import NAMES

# Of which best one is near enough.
SHARE = 0.95


def main(lab):
    methods = lab.options.methods or NAMES
    results = lab.results(lab.grid(methods), "convergence")
    results = [run for run in results if run.get("dev_by_epoch") is not None]
    curves, rows = {}, []
    for method in methods:
        if not lab_lib.by_rate(results, method):
            continue
        rate = lab_lib.best_rate(results, method)
        runs = lab_lib.by_rate(results, method)[rate]
        curve = by_epoch(runs, "dev_accuracy")
        curves[method] = rate, [100 * accuracy for accuracy in curve]
    top = max(max(curve) for _, curve in curves.values())
    for method, (rate, curve) in curves.items():
        rows.append(
            {"method": METHODS[method].label, "rate": f"{rate:g}"}
            | {
                f"epoch {number}": accuracy
                for number, accuracy in enumerate(curve, start=1)
            }
            | {
                f"epochs to {SHARE:.0%} of its best": _reached(
                    curve, SHARE * max(curve)
                ),
                f"epochs to {SHARE:.0%} of the best of all": _reached(
                    curve, SHARE * top
                ),
            }
        )
    lab.conclude(
        "convergence",
        {"Accuracy in % on the dev part by epoch, mean over seeds": rows},
        plot(curves),
    )


def by_epoch(runs, key):
    """Means over runs after each epoch; `key` is the last epoch's."""
    curves = [[*run["dev_by_epoch"], run[key]] for run in runs]
    # A run whose loss ran away has no epochs after that.
    length = min(map(len, curves))
    return [
        sum(curve[epoch] for curve in curves) / len(curves)
        for epoch in range(length)
    ]


def _reached(curve, least):
    """The first epoch, from 1, after which the accuracy is enough."""
    for number, accuracy in enumerate(curve, start=1):
        if accuracy >= least:
            return number
    return "-"


def plot(curves):
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    for method, (rate, curve) in curves.items():
        style = METHODS[method]
        axes.plot(
            range(1, len(curve) + 1),
            curve,
            **style.marker,
            linestyle=style.line,
            label=f"{style.label}, {rate:g}",
        )
    epochs = max(len(curve) for _, curve in curves.values())
    axes.set_xticks(range(1, epochs + 1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on the dev part, % (mean of seeds)")
    axes.set_title("Accuracy by epoch, at each method's best rate")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure
