"""Layers that are frozen, or kept trainable, while a model is adapted.

The configuration of such a layer, and so a file of its model, has the flag from
before the change.

A layer that one model freezes may be kept trainable for another one. It then
trains, and is frozen again when no model keeps it trainable.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.ops import values
from keras_ether.types import Layer
from keras_ether.types import Variable

FROZEN = "frozen"
TRAINABLE = "kept trainable"


def own_variables(layer: Layer) -> list[Variable]:
    """The variables of a layer that none of its sub-layers has."""
    inner = {
        id(variable)
        for child in internals.children(layer)
        for variable in child.variables
    }
    return [v for v in layer.variables if id(v) not in inner]


def own_weights(layer: Layer) -> list[Variable]:
    """Those of a layer's `own_variables` that are weights."""
    weights = {id(weight) for weight in layer.weights}
    return [v for v in own_variables(layer) if id(v) in weights]


def freeze(
    made: changes.Transaction,
    layer: Layer,
    owner: changes.Owner,
    trainable: bool = False,
) -> None:
    """Freezes the variables that a layer owns itself.

    `trainable` is the new value of the layer's own flag: true if a sub-layer
    trains. A layer whose flag is false also computes as in inference, so batch
    normalization's moving statistics don't change.
    """
    made.suspend(layer, TRAINABLE)
    variables = own_variables(layer)
    # Float8 scales are overwritten with their gradients, and must be.
    frozen = [v for v in variables if not v.overwrite_with_gradient]
    trainable = trainable or len(frozen) < len(variables)
    found = made.hold(
        layer,
        FROZEN,
        owner,
        lambda: _setting(layer, trainable, frozen, False),
        (layer.trainable, {id(v): v.trainable for v in variables}),
    )
    # Another owner may have set another flag.
    made.set(found.changes[0], "value", trainable)
    made.resume(layer, FROZEN)
    made.set(layer, internals.TRAINABLE, trainable)
    _settle(made, layer)


def _settle(made: changes.Transaction, layer: Layer) -> None:
    """Makes a layer train if an owner keeps it trainable."""
    if is_kept_trainable(layer):
        made.suspend(layer, FROZEN)
        made.resume(layer, TRAINABLE)
    else:
        made.resume(layer, FROZEN)


def _setting(
    layer: Layer, trainable: bool, variables: list[Variable], flag: bool
) -> Iterator[changes.Change]:
    """Sets the flag of a layer, and that of some of its variables.

    The first change is that of the layer's flag.
    """
    before = layer.trainable
    yield changes.Attribute(layer, internals.TRAINABLE, trainable)
    yield changes.Method(
        layer, "get_config", functools.partial(_config_from_before, before)
    )
    for variable in variables:
        yield changes.Flag(variable, flag)


def _config_from_before(
    trainable: bool, get_config: Callable[[], dict]
) -> dict[str, Any]:
    config = get_config()
    if "trainable" in config:
        config["trainable"] = trainable
    return config


def freeze_since(
    made: changes.Transaction,
    layer: Layer,
    owner: changes.Owner,
    before: tuple[bool, list[bool]],
) -> None:
    """Freezes a copy of a layer with these `flags_before`."""
    set_flags(layer, *before)
    freeze(made, layer, owner)


def is_frozen(layer: Layer) -> bool:
    """Whether the layer is frozen, with any flags."""
    found = changes.held(layer, FROZEN)
    return found is not None and found.active


def thawed(layer: Layer) -> list[Variable]:
    """Weights of a frozen layer that were made trainable again."""
    if not is_frozen(layer):
        return []
    # Float8 scales were not frozen.
    return [
        v
        for v in own_weights(layer)
        if v.trainable and not v.overwrite_with_gradient
    ]


def flags_before(layer: Layer) -> tuple[bool, list[bool]] | None:
    """The flags of a layer and its variables before it was frozen.

    `None` if it is not frozen.
    """
    found = changes.held(layer, FROZEN)
    if found is None:
        return None
    trainable, flags = found.data
    own = own_variables(layer)
    return trainable, [flags.get(id(v), v.trainable) for v in own]


def set_flags(layer: Layer, trainable: bool, flags: Iterable[bool]) -> None:
    """Sets the flags of a layer and of the variables that it owns itself."""
    vars(layer)[internals.TRAINABLE] = trainable
    for variable, flag in zip(own_variables(layer), flags, strict=False):
        if variable.trainable != flag:
            variable.trainable = flag


def keep_trainable(
    made: changes.Transaction,
    layer: Layer,
    owner: changes.Owner,
    start: tuple[np.ndarray, ...] | None = None,
) -> None:
    """Keeps a layer trainable, even if the layer or its model was frozen.

    Such a layer trains in full and has no adapter, so removing the adapters
    does not reset it. For a reset, a copy of its weights is kept in host
    memory: `start`, or by default those that it has now.
    """
    made.suspend(layer, FROZEN)
    if start is None and not is_kept_trainable(layer):
        start = _values_of(layer)
    made.hold(layer, TRAINABLE, owner, lambda: _thawing(layer), start)


def _thawing(layer: Layer) -> Iterable[changes.Change]:
    if layer.trainable:
        # Variables that were frozen one by one stay frozen.
        return ()
    may_train = {id(v) for v in internals.variables_that_may_train(layer)}
    thawed = [v for v in own_variables(layer) if id(v) in may_train]
    return _setting(layer, True, thawed, True)


def is_kept_trainable(layer: Layer) -> bool:
    """Whether an owner keeps the layer trainable."""
    return changes.held(layer, TRAINABLE) is not None


def release_all(
    made: changes.Transaction, layer: Layer, owners: set[changes.Owner]
) -> None:
    """Undoes `freeze` and `keep_trainable` of some owners."""
    for name in (FROZEN, TRAINABLE):
        made.release(layer, name, owners)
    _settle(made, layer)


def start_assignments(
    path: str, layer: Layer
) -> list[tuple[Variable, np.ndarray]]:
    """Pairs of variable and value that reset a layer kept trainable.

    Raises:
        ValueError: if the layer has other weights now, or if they were spread
            over several processes.
    """
    own, start = own_weights(layer), start_of(layer)
    shapes = [tuple(weight.shape) for weight in own]
    if start is None or shapes != [value.shape for value in start]:
        why = (
            "its weights are spread over several processes"
            if start is None
            else f"its weights have other shapes now, {shapes}"
        )
        raise ValueError(
            f"The weights of layer '{path}' can't be reset: {why}. Pass "
            "`reset_head=False`, and set the weights yourself."
        )
    return list(zip(own, start, strict=True))


def start_of(layer: Layer) -> tuple[np.ndarray, ...] | None:
    """The weights that a layer had when it was first kept trainable."""
    found = changes.held(layer, TRAINABLE)
    return None if found is None else found.data


def _values_of(layer: Layer) -> tuple[np.ndarray, ...] | None:
    own = own_weights(layer)
    # No process has the whole of an array spread over several.
    whole = all(getattr(v.value, "is_fully_addressable", True) for v in own)
    return tuple(map(values.to_numpy, own)) if whole else None
