"""Freezing of layers, and thawing them again.

A frozen layer keeps a record of its previous flags, so that they can be
restored from any model, or part of one, that the layer has become part of. Its
configuration, and so a file of the model, has the previous flag too.
"""

import functools
from collections.abc import Callable
from typing import Any

from keras_ether import _keras_internals as internals
from keras_ether.adapters import shadowing
from keras_ether.types import Layer

RECORD = "_ether_trainable_before"
KEPT = "_ether_kept_trainable"
CONFIG = "get_config"


def own_variables(layer: Layer) -> list:
    """The variables of a layer that none of its sub-layers has."""
    inner = {
        id(variable)
        for child in internals.children(layer)
        for variable in child.variables
    }
    return [v for v in layer.variables if id(v) not in inner]


def freeze(layer: Layer, trainable: bool = False) -> None:
    """Freezes the variables that a layer owns itself.

    Args:
        layer: A Keras layer.
        trainable: The new value of the layer's own flag: true if one of its
            sub-layers trains. A layer whose flag is false also computes as in
            inference, which keeps batch normalization's moving statistics
            unchanged.
    """
    variables = own_variables(layer)
    if RECORD not in layer.__dict__:
        flags = tuple((variable, variable.trainable) for variable in variables)
        layer.__dict__[RECORD] = (layer.trainable, flags)
    # Float8 scales are overwritten with their gradients, and must be.
    frozen = [v for v in variables if not v.overwrite_with_gradient]
    trainable = trainable or len(frozen) < len(variables)
    internals.set_trainable(layer, trainable)
    if trainable != layer.__dict__[RECORD][0]:
        shadowing.shadow(
            layer, CONFIG, functools.partial(_config_from_before, layer)
        )
    for variable in frozen:
        variable.trainable = False


def keep(layer: Layer) -> None:
    """Marks a layer to stay trainable when adapters are added later."""
    layer.__dict__[KEPT] = True


def is_kept(layer: Layer) -> bool:
    """Whether `keep` marked the layer."""
    return KEPT in layer.__dict__


def thaw(layer: Layer) -> None:
    """Undoes `freeze` and `keep`."""
    layer.__dict__.pop(KEPT, None)
    record = layer.__dict__.pop(RECORD, None)
    if record is None:
        return
    shadowing.restore(layer, CONFIG)
    trainable, flags = record
    internals.set_trainable(layer, trainable)
    for variable, flag in flags:
        variable.trainable = flag


def is_frozen(layer: Layer) -> bool:
    """Whether `freeze` was called and `thaw` was not, whatever the flags."""
    return RECORD in layer.__dict__


def flags_of(layer: Layer) -> dict:
    """A layer's current flags and those before `freeze`, for `set_flags`."""
    own = own_variables(layer)
    flags = {
        "trainable": layer.trainable,
        "variables": [variable.trainable for variable in own],
        "kept": is_kept(layer),
        "before": None,
        "config": shadowing.is_shadowed(layer, CONFIG),
    }
    if is_frozen(layer):
        trainable, pairs = layer.__dict__[RECORD]
        known = {id(variable): flag for variable, flag in pairs}
        flags["before"] = (trainable, [known.get(id(v)) for v in own])
    return flags


def set_flags(layer: Layer, flags: dict) -> None:
    """Gives a layer the flags of another one with as many variables.

    Args:
        layer: A Keras layer.
        flags: The result of `flags_of`.
    """
    thaw(layer)
    own = own_variables(layer)
    if flags["kept"]:
        keep(layer)
    if flags["before"] is not None:
        trainable, before = flags["before"]
        layer.__dict__[RECORD] = (
            trainable,
            tuple(
                (variable, flag)
                for variable, flag in zip(own, before, strict=True)
                if flag is not None
            ),
        )
    if flags["config"]:
        shadowing.shadow(
            layer, CONFIG, functools.partial(_config_from_before, layer)
        )
    internals.set_trainable(layer, flags["trainable"])
    for variable, flag in zip(own, flags["variables"], strict=True):
        variable.trainable = flag


def _config_from_before(
    layer: Layer, get_config: Callable[[], dict]
) -> dict[str, Any]:
    """The layer's configuration, with the flag that it had before `freeze`."""
    config = get_config()
    if "trainable" in config:
        config["trainable"] = layer.__dict__[RECORD][0]
    return config
