"""What trains, by method; the head trains with all of them.

ETHER, ETHER+, OFT, Naive and LoRA change the same layers, all linear maps of
the backbone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras_ether
from benchmarks import variants

TARGETS = "all-linear"


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        label: Its name in tables and plots.
        color: Its colour.
        adapt: Function `(model, rank_blocks, seed)` that leaves trainable what
            the method trains.
    """

    label: str
    color: str
    adapt: Callable


def _ether(model, rank_blocks, seed, name):
    keras_ether.apply(
        model,
        method=name,
        rank_blocks=rank_blocks,
        targets=TARGETS,
        seed=seed,
    )


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


METHODS = {
    "ether": Method(
        "ETHER", "#1b7f79", functools.partial(_ether, name="ether")
    ),
    "ether+": Method(
        "ETHER+", "#2f6fbf", functools.partial(_ether, name="ether+")
    ),
    "oft": Method("OFT", "#e08a1e", functools.partial(_ether, name="oft")),
    "naive": Method(
        "Naive", "#7b4fa3", functools.partial(_ether, name="naive")
    ),
    "lora-1": Method("LoRA r=1", "#f2a6b8", functools.partial(_lora, rank=1)),
    "lora-4": Method("LoRA r=4", "#d4476e", functools.partial(_lora, rank=4)),
    "lora-8": Method("LoRA r=8", "#8a1538", functools.partial(_lora, rank=8)),
    "bitfit": Method("BitFit", "#a39a00", _bitfit),
    "head": Method("head only", "#b0b0b0", _head),
    "full": Method("full", "#333333", _full),
    # Nothing trains: the model as it comes, with a random head.
    "base": Method("base", "#000000", _head),
}
