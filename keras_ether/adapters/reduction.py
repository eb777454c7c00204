"""How Python copies and pickles layers that have adapters.

Keras copies a layer by its `.keras` format, in which an adapted model is the
plain model with the fine-tuned kernels. Layers with an adapter, and adapters,
have a `__reduce__` of their own. A model or another layer around them is of a
class without it, so Python is told of the class by `copyreg` when an adapter is
put in. Layers of such classes without any adapter are left to Keras.
"""

import copyreg
import sys
from collections.abc import Callable
from typing import Any

import keras

from keras_ether.types import Layer
from keras_ether.types import LayerMixin

_reducers: list[Callable[[Layer], tuple | None]] = []


def use(reducer: Callable[[Layer], tuple | None]) -> None:
    """Sets the function that says how a layer is copied.

    Args:
        reducer: Function from a layer to the result of `__reduce__`, or to
            `None` for Keras's own.
    """
    _reducers[:] = [reducer]


class Reduced(LayerMixin):
    """A layer whose copies have its adapters."""

    def __reduce__(self) -> Any:
        return _own_reduction(self) or super().__reduce__()


def meet(layer: Layer) -> None:
    """Tells Python of the class of a layer that holds adapters.

    Python keeps what it is told for ever, so only of classes that stay: those
    that a module holds, or that are registered with Keras. Keras can't copy
    layers of any other.
    """
    layer_class = type(layer)
    if not issubclass(layer_class, Reduced) and _stays(layer_class):
        copyreg.pickle(layer_class, _reduce)


def _reduce(layer: Layer) -> Any:
    return _own_reduction(layer) or layer.__reduce__()


def _own_reduction(layer: Layer) -> tuple | None:
    return next((found for r in _reducers if (found := r(layer))), None)


def _stays(layer_class: type) -> bool:
    if keras.saving.get_registered_name(layer_class) != layer_class.__name__:
        return True
    found: Any = sys.modules.get(layer_class.__module__)
    for name in layer_class.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is layer_class
