"""Accuracy by learning rate, and the width of the band that is good enough."""

import math

import numpy as np
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
    "oft",
    "naive",
    "lora-1",
    "lora-8",
    "full",
)
# What is near enough to a best accuracy, and what has at least learned.
POINTS = (2, 10)
# Decades; the rates tried are 0.6 apart.
STEP = 1.1


def main(lab):
    methods = lab.options.methods or NAMES
    results = lab.results(lab.grid(methods), "robustness")
    curves = {
        method: {
            rate: 100 * lab_lib.mean(runs, "test_accuracy")
            for rate, runs in lab_lib.by_rate(results, method).items()
        }
        for method in methods
    }
    curves = {method: curve for method, curve in curves.items() if curve}
    rates = sorted({rate for curve in curves.values() for rate in curve})
    top = max(max(curve.values()) for curve in curves.values())
    by_rate, bands = [], []
    for method, curve in curves.items():
        label = METHODS[method].label
        seeds = [len(s) for s in lab_lib.by_rate(results, method).values()]
        best = max(curve.values())
        by_rate.append(
            {"method": label, "seeds": _span(seeds)}
            | {f"{rate:g}": curve.get(rate, "-") for rate in rates}
        )
        bands.append(
            {"method": label, "best": best, "worst": min(curve.values())}
            | {
                f"decades within {points} of {whose}": decades(
                    curve, highest - points
                )
                for points in POINTS
                for whose, highest in (
                    ("its best", best),
                    ("the best of all", top),
                )
            }
        )
    lab.conclude(
        "robustness",
        {
            "Accuracy in %, mean over seeds, by learning rate": by_rate,
            "Bands of learning rates": bands,
        },
        plot(results, list(curves), lab.majority),
        [claim(bands)],
    )


def _span(counts):
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def decades(curve, least):
    """Width of the widest run of neighbouring rates with enough accuracy.

    Args:
        curve: Dictionary from rates in order to accuracies. Rates further apart
            than `STEP` decades are no neighbours: nothing is known of those
            between them.
        least: Number, the accuracy that is enough.

    Returns:
        Decades from the first of those rates to the last: 0 for a single one,
        -1 for none.
    """
    widest, first, before = -1.0, None, None
    for rate, value in curve.items():
        if before and math.log10(rate / before) > STEP:
            first = None
        before = rate
        if value < least:
            first = None
            continue
        first = rate if first is None else first
        widest = max(widest, math.log10(rate / first))
    return round(widest, 2)


def claim(bands):
    """What the bands say of the paper's claim that ETHER's is the widest."""
    sentences = []
    for column in list(bands[0])[3:]:
        widest = max(row[column] for row in bands)
        names = [row["method"] for row in bands if row[column] == widest]
        sentences.append(
            f"Widest band, {column}: {', '.join(names)} ({widest:g})."
        )
    return " ".join(sentences)


# A panel each, so that lines can be told apart.
PANELS = {
    "ETHER": ("ether", "ether-learned", "ether-both-learned"),
    "ETHER+": (
        "ether+",
        "ether+-learned",
        "ether+-input",
        "ether+-input-learned",
    ),
    "Further methods": ("chain-2", "chain-4", "oft", "naive"),
    "LoRA and full fine-tuning": ("lora-1", "lora-4", "lora-8", "full"),
}


def plot(results, methods, majority):
    others = [name for name in methods if name not in sum(PANELS.values(), ())]
    panels = {
        title: [name for name in names if name in methods]
        for title, names in {**PANELS, "Others": others}.items()
    }
    panels = {title: names for title, names in panels.items() if names}
    rows = math.ceil(len(panels) / 2)
    columns = min(2, len(panels))
    figure = Figure(
        figsize=(5.2 * columns, 3.9 * rows + 0.4), layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True)
    axes = list(np.ravel(grid))
    top = max(_means(results, name).max() for name in methods)
    for one, (title, names) in zip(axes, panels.items(), strict=False):
        one.axhspan(top - POINTS[0], top, color="#f3e9c6", zorder=0)
        one.axhline(majority, color="#888888", linestyle=":", linewidth=1)
        for name in names:
            _draw(one, results, name)
        one.set_title(title, fontsize=11)
        one.set_xscale("log")
        one.grid(color="#e6e6e6", linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelbottom=True)
        one.legend(
            fontsize=8,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.09),
            ncols=2,
        )
    for one in axes[len(panels) :]:
        one.remove()
    figure.supxlabel("learning rate of Adam", fontsize=10)
    figure.supylabel("test accuracy, %", fontsize=10)
    figure.suptitle(
        "Accuracy by learning rate: means and ranges of seeds; within "
        f"{POINTS[0]} points of the best shaded; dotted, the majority",
        fontsize=10,
    )
    return figure


def _means(results, method):
    runs = lab_lib.by_rate(results, method)
    return np.array(
        [100 * lab_lib.mean(seeds, "test_accuracy") for seeds in runs.values()]
    )


def _draw(axes, results, method):
    runs = lab_lib.by_rate(results, method)
    style = METHODS[method]
    values = [
        [100 * run["test_accuracy"] for run in seeds] for seeds in runs.values()
    ]
    axes.plot(
        list(runs),
        _means(results, method),
        **style.marker,
        markersize=4.5,
        linestyle=style.line,
        label=style.label,
    )
    axes.fill_between(
        list(runs),
        [min(v) for v in values],
        [max(v) for v in values],
        color=style.color,
        alpha=0.12,
        linewidth=0,
    )
