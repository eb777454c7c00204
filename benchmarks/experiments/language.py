"""Loss of a language model on held-out texts, by method and learning rate.

SmolLM2-135M-Instruct learns to continue film reviews, next token by next
token, by adapters on all linear maps of its backbone; nothing else trains.
"""

import math

from benchmarks.experiments import convergence
from benchmarks.experiments import lab as lab_lib
from benchmarks.experiments import rate_panels
from benchmarks.experiments import robustness
from benchmarks.experiments.methods import METHODS

# Llama has no bias, and no head of its own.
NAMES = [name for name in METHODS if name not in ("bitfit", "head", "base")]
# Nats that are near enough to a best loss: 2 % of the perplexity.
MARGIN = 0.02


def main(lab):
    methods = lab.options.methods or NAMES
    others = [method for method in methods if method not in NAMES]
    if others:
        raise SystemExit(f"{', '.join(others)} would train nothing here.")
    wanted = [lab.settings("base"), *lab.grid(methods)]
    results = lab.results(wanted, "language")
    if len(results) < 2 or results[0]["method"] != "base":
        raise SystemExit(
            "With these options the base was not tested, which losses are "
            "compared with, or nothing else was: leave out `--only-finished`."
        )
    base, *results = results
    runs = {method: lab_lib.by_rate(results, method) for method in methods}
    runs = {method: by_rate for method, by_rate in runs.items() if by_rate}
    # The others are in the first table alone.
    learned = {
        method: by_rate
        for method, by_rate in runs.items()
        if mean(by_rate[best_rate(by_rate)], "test_loss") < math.inf
    }
    if not learned:
        raise SystemExit("Every loss ran away: try lower rates.")
    lab.conclude(
        "language",
        {
            "Loss in nats a token on the test part, mean over seeds, by "
            "learning rate": losses(base, runs),
            "At the rate that the dev part chose": at_best(base, learned),
            "Loss on the dev part by epoch, at these rates": epochs(
                base, learned
            ),
        },
        plot(base, learned),
    )


def mean(results, key):
    """Mean over runs; infinite if the loss of one ran away."""
    value = lab_lib.mean(results, key)
    return math.inf if value is None else value


def best_rate(by_rate):
    """The rate of the lowest mean loss on the texts to choose by."""
    return min(by_rate, key=lambda rate: mean(by_rate[rate], "dev_loss"))


def losses(base, runs):
    rates = sorted({rate for by_rate in runs.values() for rate in by_rate})
    rows = [
        {"method": METHODS["base"].label, "seeds": "-"}
        | {f"{rate:g}": base["test_loss"] for rate in rates}
    ]
    for method, by_rate in runs.items():
        row = {
            "method": METHODS[method].label,
            "seeds": robustness.span(
                [len(seeds) for seeds in by_rate.values()]
            ),
        }
        for rate in rates:
            found = mean(by_rate[rate], "test_loss") if rate in by_rate else "-"
            row[f"{rate:g}"] = "ran away" if found == math.inf else found
        rows.append(row)
    return rows


def at_best(base, runs):
    curves = {
        method: {
            rate: -mean(seeds, "test_loss") for rate, seeds in by_rate.items()
        }
        for method, by_rate in runs.items()
    }
    top = max(max(curve.values()) for curve in curves.values())
    near, nearest = (
        f"decades within {MARGIN:g} of {whose}"
        for whose in ("its best", "the best of all")
    )
    rows = [
        {
            "method": METHODS["base"].label,
            "trained parameters": 0,
            "rate": "-",
            "seeds": "-",
            "loss": base["test_loss"],
            "range of seeds": "-",
            near: "-",
            nearest: "-",
        }
    ]
    for method, by_rate in runs.items():
        rate = best_rate(by_rate)
        seeds, curve = by_rate[rate], curves[method]
        values = [mean([run], "test_loss") for run in seeds]
        rows.append(
            {
                "method": METHODS[method].label,
                "trained parameters": seeds[0]["trainable"],
                "rate": f"{rate:g}",
                "seeds": len(seeds),
                "loss": sum(values) / len(values),
                "range of seeds": [min(values), max(values)],
                near: robustness.decades(curve, max(curve.values()) - MARGIN),
                nearest: robustness.decades(curve, top - MARGIN),
            }
        )
    return rows


def epochs(base, runs):
    rows = []
    for method, by_rate in runs.items():
        rate = best_rate(by_rate)
        curve = convergence.by_epoch(by_rate[rate], "dev_loss")
        rows.append(
            {
                "method": METHODS[method].label,
                "rate": f"{rate:g}",
                "before": base["dev_loss"],
            }
            | {f"epoch {n}": loss for n, loss in enumerate(curve, start=1)}
        )
    return rows


def plot(base, runs):
    values = {
        method: {
            rate: [run["test_loss"] for run in seeds]
            for rate, seeds in by_rate.items()
            if mean(seeds, "test_loss") < math.inf
        }
        for method, by_rate in runs.items()
    }
    before = base["test_loss"]
    best = min(
        sum(seeds) / len(seeds)
        for by_rate in values.values()
        for seeds in by_rate.values()
    )
    # Losses that are far above the base's leave the frame.
    gain = max(before - best, MARGIN)
    return rate_panels.plot(
        values,
        shaded=(best, best + MARGIN),
        line=before,
        label="loss on held-out texts, nats a token",
        title="Loss by learning rate: means and ranges of seeds; within "
        f"{MARGIN:g} of the best shaded; dotted, before training",
        limits=(best - 0.1 * gain, before + 0.4 * gain),
    )
