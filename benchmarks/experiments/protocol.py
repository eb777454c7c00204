"""The protocol: which runs, for every method alike, and their tables."""

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.__main__ import METHODS as NAMES
from benchmarks.experiments.methods import METHODS

# Adam's default in Keras.
DEFAULT = 1e-3
HEAD_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# What a language model does untrained.
PROMPTS = ("base", "few-shot-1", "few-shot-4")


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
            row(lab, "head only", runs) | at_best(lab, "head", runs, head_rate)
        )
    curves = {}
    for name in names:
        found = by_rate(lab, name, head_rate)
        tried = [run for runs in found.values() for run in runs]
        if not tried:
            continue
        plain = seeds_at(lab, name, DEFAULT, DEFAULT)
        rows.append(
            row(lab, METHODS[name].label, tried)
            | {"all at 1e-3": shown(lab, plain)}
            | (started(lab, name, head_rate) if lab.task.has_head else {})
            | at_best(lab, name, tried, head_rate)
        )
        curves[name] = by_rate(lab, name, head_rate)
    lab.conclude(
        {f"{lab.task.label}, {lab.unit}, mean ± standard error (seeds)": rows},
        plot(lab, curves),
        notes,
    )


HEAD_FIRST = "head alone, then all at 1e-3"
REGRESSION = "head by regression, then all at 1e-3"
OWN_HEAD = "1e-3, head at its own"
CHOSEN = "chosen rate (rates tried)"


def before(lab):
    """Rows of what does not fine-tune."""
    if lab.task.is_loss:
        found = {name: lab.results([lab.settings(name)]) for name in PROMPTS}
        return [
            row(lab, METHODS[name].label, runs, value=shown(lab, runs))
            for name, runs in found.items()
        ]
    labels = {
        "majority": "most frequent class",
        "logistic": "logistic regression on frozen vectors",
    }
    rows = []
    for name, label in labels.items():
        # No seed decides which class is the most frequent.
        seeds = lab.options.seeds[: 1 if name == "majority" else None]
        runs = lab.results([lab.settings(name, seed=seed) for seed in seeds])
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


def seeds_at(lab, name, rate, head_rate, **more):
    return lab.results(
        [
            lab.settings(name, rate, head_rate, seed) | more
            for seed in lab.options.seeds
        ]
    )


def started(lab, name, head_rate):
    """Columns by how the head starts; all else is at Adam's default."""
    starts = {HEAD_FIRST: head_rate, REGRESSION: "logistic"}
    if name == "ether":
        # It starts far from the model that the head was for.
        columns = dict.fromkeys(starts, "-")
    else:
        columns = {
            column: shown(
                lab, seeds_at(lab, name, DEFAULT, DEFAULT, head_first=start)
            )
            for column, start in starts.items()
        }
    own = seeds_at(lab, name, DEFAULT, head_rate)
    return columns | {OWN_HEAD: shown(lab, own)}


def best_rate(lab, runs):
    """The rate of the best result on the validation part, with one seed."""
    best = max(
        of_first_seed(lab, runs),
        key=lambda run: lab.score(run, "dev"),
        default=None,
    )
    return best and best["learning_rate"]


def of_first_seed(lab, runs):
    return [run for run in runs if run["seed"] == lab.options.seeds[0]]


def at_best(lab, name, tried, head_rate):
    """Columns of the rate that the validation part chose."""
    rate, count = best_rate(lab, tried), len(of_first_seed(lab, tried))
    if rate is None:
        return {}
    runs = seeds_at(lab, name, rate, head_rate)
    return {CHOSEN: f"{rate:g} ({count})", "at this rate": shown(lab, runs)}


def row(lab, label, runs, value="-"):
    counts = [run["trainable"] for run in runs]
    empty = {"all at 1e-3": "-"}
    if lab.task.has_head:
        empty |= {HEAD_FIRST: "-", REGRESSION: "-", OWN_HEAD: "-"}
    return {
        "method": label,
        "parameters": f"{counts[0]:,}" if counts else "0",
        **empty,
        CHOSEN: "-",
        "at this rate": value,
    }


def shown(lab, runs):
    """Mean over seeds, its standard error, and how many seeds."""
    if not runs:
        return "-"
    mean, error = summary(lab, runs)
    if not np.isfinite(mean):
        return f"ran away ({len(runs)})"
    digits = 3 if lab.task.is_loss else 1
    text = f"{mean:.{digits}f}"
    if len(runs) > 1:
        text += f" ± {error:.{digits}f}"
    return f"{text} ({len(runs)})"


def summary(lab, runs):
    """Mean over seeds and its standard error.

    The error is NaN for one seed, and both are if a run ran away.
    """
    values = [abs(lab.score(run)) for run in runs]
    if not np.isfinite(values).all():
        return np.nan, np.nan
    if len(values) == 1:
        return values[0], np.nan
    return np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))


def plot(lab, curves):
    """Lines of the first seed, and means with bars where more seeds ran."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    means = {
        name: {
            rate: summary(lab, runs)
            for rate, runs in by_rate.items()
            if len(runs) > 1
        }
        for name, by_rate in curves.items()
    }
    repeated = [name for name in means if means[name]]
    for name, by_rate in curves.items():
        style = METHODS[name]
        first = {
            rate: abs(lab.score(run))
            for rate, runs in by_rate.items()
            for run in of_first_seed(lab, runs)
        }
        axes.plot(
            list(first),
            list(first.values()),
            style.line,
            color=style.color,
            marker="o",
            markersize=4,
            markerfacecolor="white",
            label=style.label,
        )
        if name in repeated:
            # Side by side: methods have the same rates.
            shift = repeated.index(name) - (len(repeated) - 1) / 2
            values, errors = zip(*means[name].values(), strict=True)
            axes.errorbar(
                np.array(list(means[name])) * 1.06**shift,
                values,
                errors,
                fmt="o",
                color=style.color,
                markersize=5,
                capsize=3,
            )
    axes.axvline(DEFAULT, color="#888888", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of Adam; dotted, Keras's default")
    axes.set_ylabel(lab.unit)
    axes.set_title(lab.task.label)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
