"""Methods of single layers, replaced temporarily.

An entry in the instance's dictionary hides the method of the class, unseen by
Keras's trackers. One record keeps the previous entries.
"""

import functools
from collections.abc import Callable
from typing import Any

from keras_ether.types import Layer

RECORD = "_ether_shadowed"


def shadow(layer: Layer, name: str, function: Callable) -> None:
    """Makes `layer.name(...)` call `function(original, ...)`.

    `original` is the method without the shadow. A second call replaces the
    function and keeps the original.

    Args:
        layer: A Keras layer.
        name: String, name of a method of it.
        function: The function called in its place.
    """
    record = layer.__dict__.setdefault(RECORD, {})
    if name not in record:
        record[name] = layer.__dict__.pop(name, None)

    # Keras marks its default methods by attributes, which it looks for, for
    # example, before it makes a configuration from the constructor's arguments.
    @functools.wraps(_original(layer, name))
    def method(*args: Any, **kwargs: Any) -> Any:
        return function(_original(layer, name), *args, **kwargs)

    layer.__dict__[name] = method


def is_shadowed(layer: Layer, name: str) -> bool:
    """Whether `shadow` replaced this method of the layer."""
    return name in layer.__dict__.get(RECORD, {})


def restore(layer: Layer, name: str) -> None:
    """Undoes `shadow`, if it was called."""
    if not is_shadowed(layer, name):
        return
    record = layer.__dict__[RECORD]
    before = record.pop(name)
    layer.__dict__.pop(name, None)
    if before is not None:
        layer.__dict__[name] = before
    if not record:
        del layer.__dict__[RECORD]


def _original(layer: Layer, name: str) -> Callable:
    """The method behind a shadow: the instance's own, or that of its class."""
    before = layer.__dict__[RECORD][name]
    # Looked up at each call, since the layer's class may have changed.
    return before or getattr(type(layer), name).__get__(layer)
