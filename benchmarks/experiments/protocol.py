"""The protocol: which runs, for every method alike, and their tables."""

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.__main__ import METHODS as NAMES
from benchmarks.experiments.methods import METHODS

# Adam's default in Keras.
DEFAULT = 1e-3
HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def main(lab):
    options = lab.options
    names = options.methods or NAMES
    rows, notes, head_rate = before(lab), [], options.head_rate
    if lab.task.has_head and head_rate is None:
        first = options.seeds[0]
        runs = lab.results(
            [lab.settings("head", r, r, first) for r in HEAD_RATES]
        )
        head_rate = best_rate(lab, runs) or DEFAULT
        notes.append(
            f"The head's rate, with everything else frozen: {head_rate:g} of "
            + ", ".join(f"{run['learning_rate']:g}" for run in runs)
            + "."
        )
        rows.append(
            row(lab, "head only", runs)
            | at_best(lab, "head", head_rate, head_rate)
        )
    curves = {}
    for name in names:
        curves[name] = by_rate(lab, name, head_rate)
        tried = [run for runs in curves[name].values() for run in runs]
        if not tried:
            continue
        rate = best_rate(lab, tried)
        plain = seeds_at(lab, name, DEFAULT, DEFAULT)
        own_head = seeds_at(lab, name, DEFAULT, head_rate)
        rows.append(
            row(lab, METHODS[name].label, tried)
            | {"all at 1e-3": shown(lab, plain)}
            | ({OWN_HEAD: shown(lab, own_head)} if lab.task.has_head else {})
            | at_best(lab, name, rate, head_rate)
        )
        curves[name] = by_rate(lab, name, head_rate)
    lab.conclude(
        {f"{lab.task.label}, {lab.unit}, mean ± standard error (seeds)": rows},
        plot(lab, curves),
        notes,
    )


OWN_HEAD = "1e-3, head at its own"


def before(lab):
    """Rows of what does not fine-tune."""
    if lab.task.is_loss:
        runs = lab.results([lab.settings("base")])
        return [row(lab, METHODS["base"].label, runs, value=shown(lab, runs))]
    labels = {
        "majority": "majority",
        "logistic": "logistic regression on frozen vectors",
    }
    rows = []
    for name, label in labels.items():
        runs = lab.results([lab.settings(name)])
        rows.append(row(lab, label, runs, value=shown(lab, runs)))
    return rows


def by_rate(lab, name, head_rate):
    """The runs of a method by rate: the first seed at all of its rates."""
    rates = lab.options.learning_rates or {
        *METHODS[name].rates,
        *lab.rates_on_disk(name, head_rate),
    }
    found = {}
    for rate in sorted(rates):
        wanted = [lab.settings(name, rate, head_rate, lab.options.seeds[0])]
        wanted += [
            settings
            for seed in lab.options.seeds[1:]
            if lab.store.find(
                settings := lab.settings(name, rate, head_rate, seed)
            )
        ]
        runs = lab.results(wanted)
        if runs:
            found[rate] = runs
    return found


def seeds_at(lab, name, rate, head_rate):
    return lab.results(
        [
            lab.settings(name, rate, head_rate, seed)
            for seed in lab.options.seeds
        ]
    )


def best_rate(lab, runs):
    """The rate of the best result on the validation part, with one seed."""
    first = [run for run in runs if run["seed"] == lab.options.seeds[0]]
    best = max(first, key=lambda run: lab.score(run, "dev"), default=None)
    return best and best["learning_rate"]


def at_best(lab, name, rate, head_rate):
    """Columns of the rate that the validation part chose."""
    if rate is None:
        return {}
    runs = seeds_at(lab, name, rate, head_rate)
    return {"chosen rate": f"{rate:g}", "at it": shown(lab, runs)}


def row(lab, label, runs, value="-"):
    counts = [run["trainable"] for run in runs]
    empty = {"all at 1e-3": "-"}
    if lab.task.has_head:
        empty[OWN_HEAD] = "-"
    return {
        "method": label,
        "parameters": f"{counts[0]:,}" if counts else "0",
        **empty,
        "chosen rate": "-",
        "at it": value,
    }


def shown(lab, runs):
    """Mean over seeds, its standard error, and how many seeds."""
    values = [abs(lab.score(run)) for run in runs]
    if not values:
        return "-"
    digits = 3 if lab.task.is_loss else 1
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        text += f" ± {error:.{digits}f}"
    return f"{text} ({len(values)})"


def plot(lab, curves):
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, by_rate in curves.items():
        style = METHODS[name]
        means = [
            np.mean([abs(lab.score(run)) for run in runs])
            for runs in by_rate.values()
        ]
        axes.plot(
            list(by_rate),
            means,
            style.line,
            color=style.color,
            marker="o",
            markersize=4,
            label=style.label,
        )
    axes.axvline(DEFAULT, color="#888888", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of Adam; dotted, Keras's default")
    axes.set_ylabel(lab.unit)
    axes.set_title(lab.task.label)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure
