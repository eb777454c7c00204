"""Accuracy against the count of trained parameters, at the best rates."""

from matplotlib.figure import Figure

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments.methods import METHODS

NAMES = (
    "ether",
    "ether-learned",
    "ether-both-learned",
    "ether+",
    "ether+-learned",
    "ether+-input",
    "ether+-input-learned",
    "chain-2",
    "chain-4",
    "lora-1",
    "lora-4",
    "lora-8",
    "oft",
    "bitfit",
    "head",
    "full",
)


def main(lab):
    methods = lab.options.methods or NAMES
    first, *more = lab.options.seeds
    # The rate is chosen with the first seed, on sentences that the reported
    # accuracy does not see.
    tried = lab.results(
        [
            lab.settings(method, rate, first)
            for method in methods
            for rate in lab.options.learning_rates
        ],
        "rates",
    )
    methods = [name for name in methods if lab_lib.by_rate(tried, name)]
    rates = {method: lab_lib.best_rate(tried, method) for method in methods}
    results = lab.results(
        [
            lab.settings(method, rates[method], seed)
            for seed in (first, *more)
            for method in methods
        ],
        "seeds",
    )
    rows = []
    for method in methods:
        runs = [result for result in results if result["method"] == method]
        values = [100 * run["test_accuracy"] for run in runs]
        rows.append(
            {
                "method": METHODS[method].label,
                "trained parameters": runs[0]["trainable"],
                "rate": f"{rates[method]:g}",
                "seeds": len(runs),
                "accuracy": sum(values) / len(values),
                "range of seeds": [min(values), max(values)],
            }
        )
    lab.conclude(
        "efficiency",
        {
            "Accuracy in % by the count of trained parameters, head "
            "included": rows
        },
        plot(rows, methods, lab.majority),
    )


def plot(rows, methods, majority):
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    for method, row in zip(methods, rows, strict=True):
        low, high = row["range of seeds"]
        style = METHODS[method]
        axes.errorbar(
            row["trained parameters"],
            row["accuracy"],
            [[row["accuracy"] - low], [high - row["accuracy"]]],
            linestyle="",
            **style.marker,
            elinewidth=1,
            capsize=3,
            label=row["method"],
        )
    axes.axhline(majority, color="#888888", linestyle=":", linewidth=1)
    axes.set_title("Accuracy by trained parameters; dotted, the majority")
    axes.set_xscale("log")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("trained parameters, head included")
    axes.set_ylabel("test accuracy, % (mean and range of seeds)")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure
