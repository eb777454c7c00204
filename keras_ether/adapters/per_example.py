"""Separate vectors for each example of a batch, within one call.

A caller with many adapters for one model opens a context around the model's
call, whose `Examples` give each example's factors. Layers look it up at each
call and store nothing. To rematerialize activations, Keras runs a layer's call
again in the backward pass, outside of the call around it. Adapted layers then
open the context again themselves; `rematerialized_call` does so for other
layers.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol

from keras_ether.types import Factors
from keras_ether.types import Layer
from keras_ether.types import Tensor

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


class NoExamplesError(ValueError):
    """A layer can't compute each example of a call separately."""


class Examples(Protocol):
    """The factors and weights of the examples of one call."""

    def factors(self, adapter: "Adapter", side: str) -> Factors:
        """`(left, right)` of one side, `(batch, blocks, k, width)` each."""

    def weights_of(self, layer: Layer) -> dict[str, Tensor] | None:
        """A layer's weights by name, with the batch as their first axis.

        `None` for a layer whose weights all examples share.
        """

    def choose(
        self,
        layer: Layer,
        each: Any,
        base: Callable[[dict[str, Tensor]], Any],
    ) -> Any:
        """Outputs of a layer with weights: `base`'s for examples of the base.

        For all others they are `each`, the outputs by their own weights.
        """

    def check(self, layer: Layer, inputs: Tensor) -> Tensor:
        """The inputs of a layer, whose leading axis has to be the batch."""


# Not a variable of `contextvars`, which `torch.compile` can't read.
class _Current(threading.local):
    examples: Examples | None = None
    # The ids of layers that have to compute for examples.
    bound: frozenset[int] = frozenset()


_CURRENT = _Current()


def current(layer: Layer | None = None) -> Examples | None:
    """The examples of the current call, `None` in a plain one.

    Raises:
        NoExamplesError: if `layer` is one of `binding`, in a plain call.
    """
    if _CURRENT.examples is None and id(layer) in _CURRENT.bound:
        raise NoExamplesError(
            f"Layer '{layer.path}' was called again in the backward pass, "  # type: ignore[union-attr]
            "or by a loss, outside of the bank's call, so its adapters would "
            "get no gradient. In place of `keras.remat` or a checkpoint within "
            "the model, make the model within `keras.RematScope`."
        )
    return _CURRENT.examples


@contextlib.contextmanager
def binding(layers: frozenset[int]) -> Iterator[None]:
    """Makes plain calls of layers with these ids an error, in this thread."""
    before = _CURRENT.bound
    _CURRENT.bound = layers
    try:
        yield
    finally:
        _CURRENT.bound = before


@contextlib.contextmanager
def computing_for(examples: Examples | None) -> Iterator[None]:
    """Makes layers compute each example separately, in this thread."""
    before = _CURRENT.examples
    _CURRENT.examples = examples
    try:
        yield
    finally:
        _CURRENT.examples = before


def rematerialized_call(
    original: Callable, layer_call: Callable, *args: Any, **kwargs: Any
) -> Callable:
    """A layer's own method `original`, of a call that knows the examples."""
    examples = current()
    if examples is None:
        return original(layer_call, *args, **kwargs)

    @functools.wraps(layer_call)
    def call(*args: Any, **kwargs: Any) -> Any:
        with computing_for(examples):
            return layer_call(*args, **kwargs)

    return original(call, *args, **kwargs)


def refuse_kernel(layer: Layer, attribute: str) -> None:
    """Raises a `NoExamplesError` where one kernel can't serve all examples."""
    if current() is None:
        return
    raise NoExamplesError(
        f"The `{attribute}` of layer '{layer.path}' was read within a call in "
        "which each example has its own adapter, so there is no single "
        f"`{attribute}`. Call the layer instead, or leave it out with "
        "`exclude` of `keras_ether.apply`."
    )
