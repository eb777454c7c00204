"""The mixin that puts an adapter around a `Dense` or `EinsumDense` layer."""

import functools
from collections.abc import Callable
from typing import Any
from typing import ClassVar

from keras_ether.adapters import per_example
from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapted import AdaptedKernel
from keras_ether.ops import each_example
from keras_ether.ops import low_rank
from keras_ether.ops import placement
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
        return self.quantization_mode is None and not self.base_kernel.trainable

    def _each_example(
        self,
        inputs: Tensor,
        training: bool | Tensor | None,
        kept: dict[str, Tensor] | None,
        activation: Callable | None,
    ) -> Tensor:
        """The outputs where each example has factors of its own."""
        adapter = self.ether
        sides = before, after = adapter.factors_of_sides(kept)
        if self.quantization_mode is not None:
            return super()._adapted(inputs, training, kept, activation, sides)
        view = adapter.view
        kernel = tensor(self.base_kernel, self.compute_dtype)
        beside = each_example.beside_pays(inputs, kernel, view, before)
        if not beside:
            inputs = adapter.transform_inputs(inputs, before, training)
        outputs = self._plain_call(inputs, training, **self.linear)
        if beside:
            matrix = each_example.add_beside_each(
                view.outputs_matrix(outputs),
                view.inputs_matrix(inputs),
                view.kernel_matrix(kernel),
                *before,
            )
            outputs = view.from_outputs_matrix(matrix, like=outputs)
        outputs = adapter.transform_outputs(outputs, after, training)
        return self._finished(outputs, activation)

    def _adapted(
        self,
        inputs: Tensor,
        training: bool | Tensor | None,
        kept: dict[str, Tensor] | None,
        activation: Callable | None,
        sides: tuple[Factors | None, Factors | None] | None = None,
    ) -> Tensor:
        if per_example.current() is not None:
            return self._each_example(inputs, training, kept, activation)
        if self._may_fold():
            adapter = self.ether
            sides = before, after = adapter.factors_of_sides(kept)
            kernel = tensor(self.base_kernel, self.compute_dtype)
            gradient = is_gradient_wanted(training)
            if low_rank.pays(inputs, kernel, adapter.view, sides, gradient):
                bias = self.bias
                outputs = low_rank.folded_product(
                    inputs,
                    kernel,
                    adapter.view,
                    before,
                    after,
                    bias=None
                    if bias is None
                    else tensor(bias, self.compute_dtype),
                    training=gradient,
                    place=functools.partial(
                        placement.as_activations, kernel=self.base_kernel
                    ),
                )
                return outputs if activation is None else activation(outputs)
        return super()._adapted(inputs, training, kept, activation, sides)
