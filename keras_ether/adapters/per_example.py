"""Vectors that each example of a batch has for itself, within one call.

Whoever has many adapters for one model opens a context around the model's call
and answers in it which factors the examples have. Layers ask at each call;
nothing stays on them. A call that Keras runs again in the backward pass, to
rematerialize activations, is run outside of the call around it: the context is
opened again for it, by adapted layers themselves, and for others by
`keep_in_remat`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol

from keras_ether.adapters import shadowing
from keras_ether.types import Factors
from keras_ether.types import Layer
from keras_ether.types import Tensor

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter

REMAT = "rematerialized_call"


class NoExamplesError(ValueError):
    """A layer can't tell the examples of a call from each other."""


class Examples(Protocol):
    """Answers for the examples of one call."""

    def factors(self, adapter: "Adapter", side: str) -> Factors:
        """`(left, right)` of one side, `(batch, blocks, k, width)` each."""

    def weights_of(self, layer: Layer) -> dict[str, Tensor] | None:
        """A layer's weights, by name, with an axis of the batch before."""

    def choose(
        self,
        layer: Layer,
        each: Any,
        base: Callable[[dict[str, Tensor]], Any],
    ) -> Any:
        """Outputs of a layer with weights: `base`'s for examples of the base.

        For all others they are `each`, the outputs by their own weights.
        """

    def check(self, layer: Layer, inputs: Tensor) -> None:
        """Raises a `ValueError` unless the leading axis is the batch."""


# Not a variable of `contextvars`, which `torch.compile` can't read.
class _Current(threading.local):
    examples: Examples | None = None


_CURRENT = _Current()


def current() -> Examples | None:
    """The examples of the call that is going on, `None` in a plain one."""
    return _CURRENT.examples


@contextlib.contextmanager
def computing_for(examples: Examples | None) -> Iterator[None]:
    """Has the layers called within compute for each example by itself.

    Of this thread; a call in another one is not concerned.
    """
    before = _CURRENT.examples
    _CURRENT.examples = examples
    try:
        yield
    finally:
        _CURRENT.examples = before


def keep_in_remat(layer: Layer) -> None:
    """Has a layer that is run again compute for the same examples again.

    Args:
        layer: A Keras layer. Made without a `keras.RematScope` it is never run
            again, and this changes nothing.
    """
    shadowing.shadow(layer, REMAT, _rematerialized_call)


def _rematerialized_call(
    original: Callable, layer_call: Callable, *args: Any, **kwargs: Any
) -> Callable:
    examples = current()
    if examples is None:
        return original(layer_call, *args, **kwargs)

    @functools.wraps(layer_call)
    def call(*args: Any, **kwargs: Any) -> Any:
        with computing_for(examples):
            return layer_call(*args, **kwargs)

    return original(call, *args, **kwargs)


def refuse_kernel(layer: Layer, attribute: str) -> None:
    """Raises a `NoExamplesError` where a kernel is asked for that isn't one."""
    if current() is None:
        return
    raise NoExamplesError(
        f"Layer '{layer.path}' was asked for its `{attribute}` within a call "
        "in which every example has an adapter of its own: there is no one "
        f"transformed `{attribute}`. The code that reads it must call the "
        "layer; or leave the layer out, by `exclude` of `keras_ether.apply`."
    )
