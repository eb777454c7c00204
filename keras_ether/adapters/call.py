"""The record of one call of an adapted layer, made before it computes."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.adapters.per_example import Examples
from keras_ether.ops.backend import snapshot
from keras_ether.ops.custom_gradient import is_gradient_wanted
from keras_ether.types import Layer
from keras_ether.types import Sides
from keras_ether.types import Tensor

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


@dataclass(frozen=True)
class Call:
    """The record of one call, made when the layer is called and passed down.

    `keras.RematScope` runs a call again in the backward pass, outside of the
    outer call. The second run would not know whether it trains and which
    examples it has, and would draw another dropout mask. So the record is made
    before the first run, and both runs use it.

    Attributes:
        training: Whether it is a training call; a tensor in a call that JAX
            rematerializes.
        keep_masks: Which blocks dropout keeps, by side: boolean tensors of
            shape `(blocks, 1, 1)`. Empty if dropout is inactive.
        examples: The `Examples` of a call in which each example has its own
            adapter, or `None`.
        activation: The layer's activation, or a replacement.
    """

    training: bool | Tensor
    keep_masks: dict[str, Tensor]
    examples: Examples | None
    activation: Callable | None

    @classmethod
    def of(cls, layer: Layer, training: bool | Tensor | None = None) -> "Call":
        """The record of a call of an adapted layer that starts now."""
        training = internals.is_training(training)
        activation = getattr(layer, "activation", None)
        if internals.recomputes_activation(layer):
            activation = keras.remat(activation)
        return cls(
            training,
            layer.ether.draw_keep_masks(training),
            per_example.current(layer),
            activation,
        )

    @classmethod
    def outside(cls) -> "Call":
        """The record outside of any call: no training, no dropout."""
        return cls(False, {}, None, None)

    @property
    def gradient(self) -> bool:
        """Whether a gradient of the current computation may be needed."""
        return is_gradient_wanted(self.training)

    def factors(self, adapter: "Adapter") -> Sides:
        """The factors of an adapter's blocks as they act.

        If each example has its own factors, these have the batch as an
        additional first axis.
        """
        # One snapshot: both sides act at one strength.
        strength = None
        if self.examples is None:
            strength = snapshot(adapter.runtime_strength)
        found: Sides = dict.fromkeys(("input", "output"))
        for side in adapter.widths:
            if self.examples is None:
                trained = adapter.trained_factors(side)
                assert trained is not None  # It has vectors.
                left, right = trained[0] * strength, trained[1]
            else:
                # At full strength: this model's strength does not apply to
                # them.
                left, right = self.examples.factors(adapter, side)
            if self.keep_masks:
                left = left * keras.ops.cast(self.keep_masks[side], left.dtype)
            found[side] = left, right
        return found

    def rematerialized(
        self, layer: Layer, compute: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """`compute`, with this record as its `call` whenever it is run."""

        @functools.wraps(compute)
        def run(*args: Tensor) -> Tensor:
            scope: contextlib.AbstractContextManager = internals.autocast(layer)
            with scope, per_example.computing_for(self.examples):
                return compute(*args, call=self)

        return run
