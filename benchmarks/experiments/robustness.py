"""Accuracy by learning rate, and the width of the band that is good enough."""

import math

from matplotlib.figure import Figure

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments.methods import METHODS

NAMES = ("ether", "ether+", "oft", "naive", "lora-8", "full")
# What is near enough to a best accuracy, and what has at least learned.
POINTS = (2, 10)


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
    top = max(max(curve.values()) for curve in curves.values())
    by_rate, bands = [], []
    for method, curve in curves.items():
        label = METHODS[method].label
        best = max(curve.values())
        by_rate.append(
            {"method": label} | {f"{r:g}": a for r, a in curve.items()}
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
        plot(results, methods, lab.majority),
        [claim(bands)],
    )


def decades(curve, least):
    """Width of the widest run of neighbouring rates with enough accuracy.

    Args:
        curve: Dictionary from rates in order to accuracies.
        least: Number, the accuracy that is enough.

    Returns:
        Decades from the first of those rates to the last: 0 for a single one,
        -1 for none.
    """
    widest, first = -1.0, None
    for rate, value in curve.items():
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


def plot(results, methods, majority):
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        runs = lab_lib.by_rate(results, method)
        values = [
            [100 * run["test_accuracy"] for run in seeds]
            for seeds in runs.values()
        ]
        means = [sum(v) / len(v) for v in values]
        axes.plot(
            list(runs),
            means,
            marker="o",
            color=METHODS[method].color,
            label=METHODS[method].label,
        )
        axes.fill_between(
            list(runs),
            [min(v) for v in values],
            [max(v) for v in values],
            color=METHODS[method].color,
            alpha=0.12,
        )
    axes.axhline(majority, color="black", linestyle=":", label="majority class")
    axes.set_title("Accuracy by learning rate")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of Adam")
    axes.set_ylabel("test accuracy, % (mean and range of seeds)")
    axes.legend()
    return figure
