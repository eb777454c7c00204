"""The mixin that puts an adapter around a `Dense` or `EinsumDense` layer."""

from collections.abc import Callable
from typing import Any
from typing import ClassVar

from keras_ether.adapters import per_example
from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapted import AdaptedKernel
from keras_ether.ops import low_rank
from keras_ether.ops.backend import tensor
from keras_ether.ops.custom_gradient import is_gradient_wanted
from keras_ether.types import Factors
from keras_ether.types import Tensor
from keras_ether.types import Variable


class AdaptedDense(AdaptedCall, AdaptedKernel):
    """A `Dense` or `EinsumDense` that computes `activation(x H W G + bias)`.

    By one product with a folded kernel where that is cheaper, see
    `keras_ether.ops.low_rank`, else by transforming the activations: that takes
    any kernel, a quantized one included, since it is not touched.
    """

    # What a stand-in leaves out to compute the product alone.
    linear: ClassVar = {"bias": None, "activation": None}

    def call(
        self, inputs: Tensor, training: bool | Tensor | None = None
    ) -> Tensor:
        return self._settled_call(inputs, training=training)

    def quantized_call(
        self, inputs: Tensor, training: bool | Tensor | None = None
    ) -> Tensor:
        return self._settled_call(inputs, training=training)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    def _broadcast_bias(self) -> Variable:
        return self.bias

    def _plain_call(
        self, inputs: Tensor, training: bool | Tensor | None, **replaced: Any
    ) -> Tensor:
        return self._compute(**replaced)(inputs, training=training)

    def _may_fold(self) -> bool:
        """Whether one folded kernel of constants would do for all examples."""
        return (
            self.quantization_mode is None
            and not self.base_kernel.trainable
            and per_example.current() is None
        )

    def _adapted(
        self,
        inputs: Tensor,
        training: bool | Tensor | None,
        kept: dict[str, Tensor] | None,
        activation: Callable | None,
        sides: tuple[Factors | None, Factors | None] | None = None,
    ) -> Tensor:
        if self._may_fold():
            adapter = self.ether
            sides = before, after = adapter.factors_of_sides(kept)
            kernel = tensor(self.base_kernel, self.compute_dtype)
            gradient = is_gradient_wanted(training)
            if low_rank.pays(inputs, kernel, adapter.view, sides, gradient):
                bias = self.bias
                if gradient:
                    before = adapter.checked(before)
                    after = adapter.checked(after)
                outputs = low_rank.folded_product(
                    inputs,
                    kernel,
                    adapter.view,
                    before,
                    after,
                    bias=None
                    if bias is None
                    else tensor(bias, self.compute_dtype),
                    orthogonal=adapter.orthogonal,
                    training=gradient,
                )
                return outputs if activation is None else activation(outputs)
        return super()._adapted(inputs, training, kept, activation, sides)
