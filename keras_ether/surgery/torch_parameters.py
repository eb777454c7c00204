"""PyTorch's view of the variables of models around a changed layer.

On PyTorch a Keras layer lists its variables, and those of its sub-layers, when
it is built. A layer does not know its outer models, so their lists can't be
renewed when it gets an adapter or loses it. They are renewed when PyTorch next
reads them. Otherwise the vectors would be missing from `outer.parameters()`,
and so from optimizers, `zero_grad` and `state_dict`.
"""

import functools
import weakref
from typing import Any

import keras

from keras_ether import _keras_internals as internals
from keras_ether.types import Layer

# PyTorch's other methods call these, as do those of an outer module.
ASKING = ("named_modules", "state_dict", "load_state_dict", "_apply")

_changes = 0
_seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def renew() -> None:
    """Makes every model's list renew itself before its next use, on PyTorch."""
    global _changes
    if keras.config.backend() != "torch":
        return
    if not _changes:
        for name in ASKING:
            _watch(internals.torch_layer_class(), name)
    _changes += 1


def _watch(layer_class: type, name: str) -> None:
    original = getattr(layer_class, name)

    @functools.wraps(original)
    def method(layer: Layer, *args: Any, **kwargs: Any) -> Any:
        # Keras calls it at each training step, so renew once for each change.
        if _seen.get(layer) != _changes:
            for part in internals.everything_in(layer):
                _seen[part] = _changes
                internals.renew_torch_parameters(part)
        return original(layer, *args, **kwargs)

    setattr(layer_class, name, method)
