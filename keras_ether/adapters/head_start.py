"""The weights of a head before its training, for another start.

A head trains in full, so no adapter holds its change, and removing the adapters
would leave a head that has seen the data. `apply` therefore keeps a copy of its
start in host memory. Vectors need no copy: `apply` makes new ones.
"""

import numpy as np

from keras_ether.adapters import freezing
from keras_ether.ops import values
from keras_ether.types import Layer
from keras_ether.types import Variable

START = "_ether_start"
# Values of the weights that a layer owns itself, in its order.
Start = tuple[np.ndarray, ...]


def remember(layer: Layer) -> None:
    """Keeps the weights that a layer owns itself, if none are kept yet.

    Args:
        layer: A Keras layer.
    """
    if is_remembered(layer):
        return
    own = _own_weights(layer)
    # No process has the whole of an array spread over several.
    whole = all(
        getattr(weight.value, "is_fully_addressable", True) for weight in own
    )
    layer.__dict__[START] = (
        tuple(values.to_numpy(weight) for weight in own) if whole else None
    )


def is_remembered(layer: Layer) -> bool:
    """Whether `remember` was called and `forget` was not."""
    return START in layer.__dict__


def forget(layer: Layer) -> None:
    """Undoes `remember`."""
    layer.__dict__.pop(START, None)


def of(layer: Layer) -> Start | None:
    """The kept weights, for `give`; `None` if there are none."""
    return layer.__dict__.get(START)


def give(layer: Layer, start: Start | None) -> None:
    """Makes a copy of a layer remember the start of the original.

    Args:
        layer: A Keras layer.
        start: The result of `of` for the original.
    """
    forget(layer)
    if start is not None:
        layer.__dict__[START] = start


def assignments(path: str, layer: Layer) -> list:
    """Pairs of variable and value that put a layer back to its start.

    Args:
        path: The layer's path, for the message.
        layer: A Keras layer for which `remember` was called.

    Raises:
        ValueError: if the layer has other weights now, or if they were spread
            over several processes.
    """
    own, start = _own_weights(layer), of(layer)
    shapes = [tuple(weight.shape) for weight in own]
    if start is None or shapes != [value.shape for value in start]:
        why = (
            "its weights are spread over several processes"
            if start is None
            else f"its weights have other shapes now, {shapes}"
        )
        raise ValueError(
            f"Layer '{path}' can't be put back to its start: {why}. Pass "
            "`reset_head=False`, and set its weights yourself."
        )
    return list(zip(own, start, strict=True))


def _own_weights(layer: Layer) -> list[Variable]:
    weights = {id(weight) for weight in layer.weights}
    return [v for v in freezing.own_variables(layer) if id(v) in weights]
