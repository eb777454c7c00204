"""Accuracy by learning rate, and the width of the band that is good enough."""

import math

import numpy as np

from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments import rate_panels
from benchmarks.experiments.methods import METHODS

NAMES = [
    name for name in METHODS if name not in ("lora-4", "bitfit", "head", "base")
]
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
            {"method": label, "seeds": span(seeds)}
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


def span(counts):
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


def plot(results, methods, majority):
    values = {
        method: {
            rate: [100 * run["test_accuracy"] for run in runs]
            for rate, runs in lab_lib.by_rate(results, method).items()
        }
        for method in methods
    }
    top = max(
        np.mean(seeds) for rates in values.values() for seeds in rates.values()
    )
    return rate_panels.plot(
        values,
        shaded=(top - POINTS[0], top),
        line=majority,
        label="test accuracy, %",
        title="Accuracy by learning rate: means and ranges of seeds; within "
        f"{POINTS[0]} points of the best shaded; dotted, the majority",
    )
