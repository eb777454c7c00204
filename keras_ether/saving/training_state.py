"""The training state: that of the optimizer and of random generators.

Both are tensors of an adapter file. An optimizer's variables are stored in
order, which follows the trained variables, since their names count up within a
process.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_ether.adapters.changes import Transaction
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.saving import torch_generators
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.adapter_header import Header
from keras_ether.saving.loading import pairs
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Layer
from keras_ether.types import Optimizer
from keras_ether.types import Variable

# `fit` runs a further batch, with draws from PyTorch's global generator, to
# build the metrics of a newly compiled model.
PENDING = "_ether_global_generators"


@dataclass(frozen=True)
class Position:
    """The position in the training when a checkpoint was written.

    Attributes:
        epoch: The epoch to continue with, counted from 0: `initial_epoch` of
            `fit`.
        batch: The number of batches of that epoch already done. It is 0 if the
            checkpoint was written at the end of an epoch.
        step: The number of steps that the optimizer has taken.
        best: The best value of the monitored quantity so far, or `None`.
    """

    epoch: int
    batch: int
    step: int
    best: float | None


def optimizer_of(model: Layer) -> Optimizer:
    """The optimizer that a model is compiled with, built.

    Raises:
        ValueError: if there is none.
    """
    optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            f"Model '{model.name}' is not compiled with an optimizer. Call "
            "`model.compile(...)` first."
        )
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return optimizer


def described(optimizer: Optimizer) -> str:
    """The classes of an optimizer and of the one that it wraps, if any."""
    inner = getattr(optimizer, "inner_optimizer", None)
    name = type(optimizer).__name__
    return f"{name} of {described(inner)}" if inner is not None else name


def content_of(
    model: Layer, epoch: int, batch: int, best: float | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header's entry and the tensors for a model's training state."""
    optimizer = optimizer_of(model)
    states = contents.random_states(LayerTree(model).by_path)
    generators = torch_generators.global_generators()
    entry = {
        "epoch": epoch,
        "batch": batch,
        "step": _step(optimizer),
        "best": best,
        "optimizer": described(optimizer),
        "optimizer_variables": len(optimizer.variables),
        "random_states": {path: len(own) for path, own in states.items()},
        "global_generators": len(generators),
    }
    tensors = {
        name: to_numpy(variable)
        for name, variable in _variables(optimizer, states).items()
    }
    for name in tensors:
        if name.startswith("random_states/"):
            # Backends use different integer dtypes for them.
            tensors[name] = tensors[name].astype("int64")
    for i, generator in enumerate(generators):
        tensors[f"global_generators/{i}"] = torch_generators.generator_state(
            generator
        )
    return entry, tensors


def fitting_state(model: Layer, content: AdapterFile) -> list:
    """Pairs of variable and value that restore a training state.

    Raises:
        ValueError: if the model or its optimizer does not match the file.
    """
    entry = content.header["training"]
    optimizer = optimizer_of(model)
    tree = LayerTree(model)
    for path, group in adapter_header.layers_of(content.header).items():
        own = tree.adapted[path].ether.config.rate_multiplier
        if own != group.config.rate_multiplier:
            # Steps and moments depend on it.
            raise ValueError(
                f"the adapter of layer '{path}' has rate_multiplier={own:g}, "
                f"in the file {group.config.rate_multiplier:g}."
            )
    states = contents.random_states(tree.by_path)
    counts = {path: len(own) for path, own in states.items()}
    for what, has, wants in (
        ("optimizer", described(optimizer), entry["optimizer"]),
        (
            "count of the optimizer's variables",
            len(optimizer.variables),
            entry["optimizer_variables"],
        ),
        ("random generators", counts, entry["random_states"]),
    ):
        if has != wants:
            raise ValueError(
                f"the model's {what} is {has}, the file's {wants}."
            )
    return pairs(_variables(optimizer, states), content.tensors)


def set_global_generators(
    model: Layer, content: AdapterFile, made: Transaction
) -> None:
    """Sets the global generators, if they match those of the file.

    Raises:
        ValueError: if the file has no state of a generator for one of them.
    """
    generators = torch_generators.global_generators()
    entry = content.header["training"]
    # Runs on other backends or devices never draw the same random numbers.
    if len(generators) != entry["global_generators"]:
        return
    states = [
        content.tensors[f"global_generators/{i}"]
        for i in range(len(generators))
    ]
    for generator, state in zip(generators, states, strict=True):
        made.make(torch_generators.GeneratorState(generator, state))
    made.set(model, PENDING, (entry["step"], states))


def set_global_generators_again(model: Layer) -> None:
    """Undoes the draws of `fit` between `resume` and the first epoch."""
    step, states = model.__dict__.pop(PENDING, (None, ()))
    if step == _step(model.optimizer):
        generators = torch_generators.global_generators()
        for generator, state in zip(generators, states, strict=True):
            torch_generators.set_generator_state(generator, state)


def _step(optimizer: Optimizer) -> int:
    return int(to_numpy(optimizer.iterations))


def position_of(header: Header) -> Position:
    """The position in the training that a header stores."""
    entry = header["training"]
    return Position(
        **{name: entry[name] for name in ("epoch", "batch", "step", "best")}
    )


def _variables(
    optimizer: Optimizer, states: dict[str, list[Variable]]
) -> dict[str, Variable]:
    """The variables of a training state by the names of their tensors."""
    own = {f"optimizer/{i}": v for i, v in enumerate(optimizer.variables)}
    return own | {
        adapter_header.tensor_name("random_states", path, str(i)): variable
        for path, own in states.items()
        for i, variable in enumerate(own)
    }
