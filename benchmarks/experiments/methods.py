"""What trains, by method; the head trains with all of them.

The methods of `keras_ether` and LoRA change the same layers, all linear maps of
the backbone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras_ether
from benchmarks import variants

TARGETS = "all-linear"
# Rates to choose among, in half decades.
LEARNED_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LORA_RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        label: Its name in tables and plots.
        color: Its colour.
        adapt: Function `(model, rank_blocks, seed)` that leaves trainable what
            the method trains.
        rates: The learning rates of Adam that are tried.
        line: The style of its line in plots.
    """

    label: str
    color: str
    adapt: Callable
    rates: tuple[float, ...] = ()
    line: str = "-"


def _ether(label, color, name, rates, line="-", targets=TARGETS, **options):
    """A method of `keras_ether`, with further arguments of `apply`."""

    def adapt(model, rank_blocks, seed):
        keras_ether.apply(
            model,
            method=name,
            rank_blocks=rank_blocks,
            targets=targets,
            seed=seed,
            **options,
        )

    return Method(label, color, adapt, rates, line)


def _learned(label, color, name, **options):
    options |= {"strength": "learned"}
    return _ether(label, color, name, LEARNED_RATES, "--", **options)


def _lora(label, color, rank, alpha, rates=LORA_RATES, line="-"):
    """KerasHub's LoRA, its factors alone: it would train biases as well."""

    def adapt(model, rank_blocks, seed):
        maps = variants.linear_maps(model, TARGETS)
        for weight in model.backbone.weights:
            weight.trainable = False
        for layer in maps:
            layer.trainable = True
            layer.enable_lora(rank, lora_alpha=alpha)
        for weight in model.backbone.weights:
            weight.trainable = "lora_kernel" in weight.path

    return Method(label, color, adapt, rates, line)


def _head(model, rank_blocks, seed):
    variants.freeze_backbone(model)


def _full(model, rank_blocks, seed):
    pass


# Solid lines for methods as published, dashed ones for a learned strength.
METHODS = {
    "ether+-input-learned": _learned(
        "default (ETHER+ on one side, learned strength)",
        "#58b4e5",
        "ether+",
        side="input",
    ),
    "ether-learned": _learned("ETHER, learned strength", "#1b7f79", "ether"),
    "ether+-learned": _learned("ETHER+, learned strength", "#2f6fbf", "ether+"),
    "ether+-input-learned-qv": _learned(
        "ETHER+ on one side, learned strength, query and value",
        "#b08fd8",
        "ether+",
        side="input",
        targets=None,
    ),
    "ether-learned-qv": _learned(
        "ETHER, learned strength, query and value",
        "#7b4fa3",
        "ether",
        targets=None,
    ),
    "ether": _ether("ETHER", "#e69f00", "ether", (3e-3, 1e-2, 3e-2)),
    "ether+": _ether("ETHER+", "#d55e00", "ether+", (1e-3, 3e-3, 1e-2)),
    "lora-1": _lora("LoRA r=1, α=1", "#f2a6b8", 1, 1, (1e-3, 3e-3, 1e-2)),
    "lora-8": _lora("LoRA r=8, α=8", "#8a1538", 8, 8),
    "lora-8-16": _lora("LoRA r=8, α=16", "#d4476e", 8, 16, line=":"),
    "full": Method("full fine-tuning", "#333333", _full, (3e-5, 1e-4, 3e-4)),
    "head": Method("head only", "#b0b0b0", _head),
    # Nothing trains: the model as it comes.
    "base": Method("before training", "#000000", _head),
    "few-shot-1": Method("one text in the prompt", "#444444", _head),
    "few-shot-4": Method("four texts in the prompt", "#777777", _head),
}
