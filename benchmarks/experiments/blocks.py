"""Accuracy and time of a step by the number of blocks."""

import keras
import numpy as np
from matplotlib.figure import Figure

from benchmarks import timing
from benchmarks.experiments import training
from benchmarks.experiments.methods import METHODS
from keras_ether import methods as ether_methods

NAMES = ("ether", "ether+")
BLOCKS = (1, 4, 32)
ROUNDS = 15


def main(lab):
    methods = lab.options.methods or NAMES
    wanted = [
        lab.settings(method, ether_methods.get(method).learning_rate, seed, n)
        for seed in lab.options.seeds
        for method in methods
        for n in BLOCKS
    ]
    results = lab.results(wanted, "blocks")
    times = step_times(lab, methods)
    rows = []
    for method in methods:
        for n in BLOCKS:
            runs = [
                run
                for run in results
                if (run["method"], run["rank_blocks"]) == (method, n)
            ]
            values = [100 * run["test_accuracy"] for run in runs]
            step = float(np.median(times[method, n]))
            rows.append(
                {
                    "method": METHODS[method].label,
                    "blocks": n,
                    "trained parameters": runs[0]["trainable"],
                    "rate": f"{runs[0]['learning_rate']:g}",
                    "accuracy": sum(values) / len(values),
                    "range of seeds": [min(values), max(values)],
                    "step, ms": step,
                    "over the first": step
                    / float(np.median(times[methods[0], BLOCKS[0]])),
                }
            )
    lab.conclude(
        "blocks",
        {"Accuracy in % and time of a training step by blocks": rows},
        plot(rows),
    )


def step_times(lab, methods):
    """Steps of all in turn, on one batch of the full length."""
    inputs, labels = lab.trainer.data.train
    size, length = lab.options.batch_size, lab.options.length
    batch = {key: value[:size, :length] for key, value in inputs.items()}
    batch["padding_mask"] = np.ones_like(batch["padding_mask"])
    steps = {}
    for method in methods:
        for n in BLOCKS:
            model = lab.trainer.base.classifier(
                method, n, 0, lab.trainer.data.classes
            )
            optimizer = keras.optimizers.Adam(1e-3)
            model.compile(optimizer=optimizer, loss=training.loss())
            steps[method, n] = lambda model=model: model.train_on_batch(
                batch, labels[:size]
            )
    return timing.alternate(steps, rounds=ROUNDS, seconds=240)


def plot(rows):
    figure = Figure(figsize=(9, 4), layout="constrained")
    accuracy, step = figure.subplots(1, 2)
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        color = next(m.color for m in METHODS.values() if m.label == name)
        blocks = [row["blocks"] for row in mine]
        for axes, column in ((accuracy, "accuracy"), (step, "step, ms")):
            values = [row[column] for row in mine]
            axes.plot(blocks, values, marker="o", color=color, label=name)
        low, high = zip(*(row["range of seeds"] for row in mine), strict=True)
        accuracy.fill_between(blocks, low, high, color=color, alpha=0.12)
    for axes, label in (
        (accuracy, "test accuracy, % (mean and range of seeds)"),
        (step, "training step, ms"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(BLOCKS, map(str, BLOCKS))
        axes.set_xlabel("blocks")
        axes.set_ylabel(label)
        axes.legend()
    step.set_ylim(bottom=0)
    figure.suptitle("Accuracy and time of a step by blocks")
    return figure
