"""What trains, by method; the head trains with all of them.

ETHER, ETHER+, OFT, Naive and LoRA change the same layers, all linear maps of
the backbone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras_ether
from benchmarks import variants
from benchmarks.experiments import chains

TARGETS = "all-linear"


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        label: Its name in tables and plots.
        color: Its colour.
        adapt: Function `(model, rank_blocks, seed)` that leaves trainable what
            the method trains.
        line: The style of its line in plots.
        has_blocks: Whether `rank_blocks` matters.
    """

    label: str
    color: str
    adapt: Callable
    line: str = "-"
    has_blocks: bool = False

    @property
    def marker(self):
        """Its marker in plots: hollow diamonds for a learned strength."""
        hollow = self.line == "--"
        return {
            "color": self.color,
            "marker": {"-": "o", "--": "D", ":": "s"}[self.line],
            "markerfacecolor": "white" if hollow else self.color,
        }


def _ether(label, color, name, line="-", **options):
    """A method of `keras_ether`, with further arguments of `apply`."""

    def adapt(model, rank_blocks, seed):
        keras_ether.apply(
            model,
            method=name,
            rank_blocks=rank_blocks,
            targets=TARGETS,
            seed=seed,
            **options,
        )

    return Method(label, color, adapt, line, has_blocks=True)


def _chain(label, color, k):
    def adapt(model, rank_blocks, seed):
        chain = _ether(label, color, chains.register(k))
        chain.adapt(model, rank_blocks, seed)

    return Method(label, color, adapt, ":", has_blocks=True)


def _lora(model, rank_blocks, seed, rank):
    """KerasHub's LoRA, its factors alone: it would train biases as well."""
    variants.lora(model, TARGETS, rank)
    for weight in model.backbone.weights:
        weight.trainable = "lora_kernel" in weight.path


def _bitfit(model, rank_blocks, seed):
    """Every bias, those of the normalizations included."""
    for weight in model.backbone.weights:
        weight.trainable = weight.name in ("bias", "beta")


def _head(model, rank_blocks, seed):
    variants.freeze_backbone(model)


def _full(model, rank_blocks, seed):
    pass


LEARNED = {"strength": "learned"}
# Solid lines for methods as published, dashed ones for a learned strength.
METHODS = {
    "ether": _ether("ETHER", "#1b7f79", "ether"),
    "ether-learned": _ether(
        "ETHER, learned strength", "#1b7f79", "ether", "--", **LEARNED
    ),
    "ether-both-learned": _ether(
        "ETHER on both sides, learned strength",
        "#5fb85c",
        "ether",
        "--",
        side="both",
        **LEARNED,
    ),
    "ether+": _ether("ETHER+", "#2f6fbf", "ether+"),
    "ether+-learned": _ether(
        "ETHER+, learned strength", "#2f6fbf", "ether+", "--", **LEARNED
    ),
    "ether+-input": _ether(
        "ETHER+ on the input side", "#58b4e5", "ether+", side="input"
    ),
    "ether+-input-learned": _ether(
        "ETHER+ on the input side, learned strength",
        "#58b4e5",
        "ether+",
        "--",
        side="input",
        **LEARNED,
    ),
    "chain-2": _chain("ETHER, 2 reflections", "#c98f2b", 2),
    "chain-4": _chain("ETHER, 4 reflections", "#8a5a00", 4),
    "oft": _ether("OFT", "#e08a1e", "oft"),
    "naive": _ether("Naive", "#7b4fa3", "naive"),
    "lora-1": Method("LoRA r=1", "#f2a6b8", functools.partial(_lora, rank=1)),
    "lora-4": Method("LoRA r=4", "#d4476e", functools.partial(_lora, rank=4)),
    "lora-8": Method("LoRA r=8", "#8a1538", functools.partial(_lora, rank=8)),
    "bitfit": Method("BitFit", "#a39a00", _bitfit),
    "head": Method("head only", "#b0b0b0", _head),
    "full": Method("full", "#333333", _full),
    # Nothing trains: the model as it comes, with a random head.
    "base": Method("base", "#000000", _head),
}
# What the paper compares.
PUBLISHED = ("ether", "ether+", "oft", "naive", "lora-8", "full")
