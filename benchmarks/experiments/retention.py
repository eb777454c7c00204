"""What tuning leaves of the base's own task, ranking sentences by cosine.

The first two thirds of each sentence rank the last two thirds of all, by the
cosine of mean token vectors: how often a sentence's own come first, and how the
ranking agrees with the base's. From the same runs as `robustness`.

An adapter can be switched off, and the base is then what it was: this is about
the model as it was tuned.
"""

from matplotlib.figure import Figure

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.methods import PUBLISHED


def main(lab):
    methods = lab.options.methods or PUBLISHED
    results = lab.results(lab.grid(methods), "retention")
    (base,) = lab.results([lab.settings("base")], "base")
    rows = [_row("base", "-", [base])]
    for method in methods:
        rate = lab_lib.best_rate(results, method)
        runs = lab_lib.by_rate(results, method)[rate]
        rows.append(_row(method, f"{rate:g}", runs))
    by_rate = [
        {"method": METHODS[method].label}
        | {
            f"{rate:g}": _percent(lab_lib.mean(runs, "match_accuracy"))
            for rate, runs in lab_lib.by_rate(results, method).items()
        }
        for method in methods
    ]
    lab.conclude(
        "retention",
        {
            "At each method's best rate, mean over seeds": rows,
            "Own excerpt first, in %, by learning rate": by_rate,
        },
        plot(base, results, methods),
    )


def _row(method, rate, runs):
    accuracy = None if method == "base" else lab_lib.mean(runs, "test_accuracy")
    correlation = lab_lib.mean(runs, "rank_correlation")
    return {
        "method": METHODS[method].label,
        "rate": rate,
        "accuracy, %": _percent(accuracy),
        "own excerpt first, %": _percent(lab_lib.mean(runs, "match_accuracy")),
        "rank correlation with the base": "-"
        if correlation is None
        else f"{correlation:.3f}",
    }


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


def plot(base, results, methods):
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        points = [
            (100 * result["test_accuracy"], 100 * result["match_accuracy"])
            for result in results
            if result["method"] == method
            and result["match_accuracy"] is not None
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True),
                s=16,
                color=METHODS[method].color,
                label=METHODS[method].label,
            )
    axes.axhline(
        100 * base["match_accuracy"],
        color="black",
        linewidth=1,
        label="the base",
    )
    axes.set_xlabel("test accuracy on the tuned task, %, a point for each run")
    axes.set_ylabel("own excerpt first by cosine, %")
    axes.set_title("The base's own task after tuning on another")
    figure.legend(loc="outside right upper")
    return figure
