"""Plots by learning rate, in panels of few methods each."""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiments.methods import METHODS

# So that lines can be told apart.
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


def plot(values, *, shaded, line, label, title, limits=None):
    """Means of seeds as lines, and their ranges as areas.

    Args:
        values: Dictionary from methods to dictionaries from rates, in order,
            to lists of numbers, one for each seed.
        shaded: Pair of numbers, what is near enough to the best.
        line: Number, the level of a dotted line.
        label: String, the name of the numbers.
        title: String.
        limits: Optional pair of numbers, the ends of the vertical axis.

    Returns:
        A figure of Matplotlib.
    """
    others = [name for name in values if name not in sum(PANELS.values(), ())]
    panels = {
        title: [name for name in names if name in values]
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
    for one, (heading, names) in zip(axes, panels.items(), strict=False):
        one.axhspan(*shaded, color="#f3e9c6", zorder=0)
        one.axhline(line, color="#888888", linestyle=":", linewidth=1)
        for name in names:
            _draw(one, METHODS[name], values[name])
        one.set_title(heading, fontsize=11)
        one.set_xscale("log")
        if limits:
            one.set_ylim(limits)
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
    figure.supylabel(label, fontsize=10)
    figure.suptitle(textwrap.fill(title, 62 * columns), fontsize=10)
    return figure


def _draw(axes, style, by_rate):
    seeds = by_rate.values()
    axes.plot(
        list(by_rate),
        [np.mean(v) for v in seeds],
        **style.marker,
        markersize=4.5,
        linestyle=style.line,
        label=style.label,
    )
    axes.fill_between(
        list(by_rate),
        [min(v) for v in seeds],
        [max(v) for v in seeds],
        color=style.color,
        alpha=0.12,
        linewidth=0,
    )
