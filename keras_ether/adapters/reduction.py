"""How Python copies and pickles layers that have adapters.

Keras copies a layer by its `.keras` format, in which an adapted model is the
plain model with the fine-tuned kernels. Layers with an adapter, and adapters,
have their own `__reduce__`. A model or another layer that contains them has a
class without it, so `copyreg` registers the class when an adapter is inserted.
Keras copies layers of such classes that have no adapter.
"""

import copyreg
import sys
from collections.abc import Callable
from typing import Any

import keras

from keras_ether.types import Layer
from keras_ether.types import LayerMixin

_reducers: list[Callable[[Layer], tuple | None]] = []


def set_reducer(reducer: Callable[[Layer], tuple | None]) -> None:
    """Sets the function that returns a layer's `__reduce__`, or `None`."""
    _reducers[:] = [reducer]


class Reduced(LayerMixin):
    """A layer whose copies have its adapters."""

    def __reduce__(self) -> Any:
        return _own_reduction(self) or super().__reduce__()


def register_class(layer: Layer) -> None:
    """Registers the class of a layer that contains adapters with Python.

    A registration is permanent, so only permanent classes are registered: those
    in a module, or registered with Keras. Keras can't copy layers of other
    classes.
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
