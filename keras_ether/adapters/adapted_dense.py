"""The mixin that puts an adapter around a `Dense` or `EinsumDense` layer."""

import functools
from typing import Any
from typing import ClassVar

from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapted import AdaptedKernel
from keras_ether.adapters.call import Call
from keras_ether.ops import each_example
from keras_ether.ops import low_rank
from keras_ether.ops import placement
from keras_ether.ops.backend import tensor
from keras_ether.types import Sides
from keras_ether.types import Tensor
from keras_ether.types import Variable


class AdaptedDense(AdaptedCall, AdaptedKernel):
    """A `Dense` or `EinsumDense` that computes `activation(x H W G + bias)`.

    It uses one product with a folded kernel if that is cheaper, see
    `keras_ether.ops.low_rank`. Otherwise it transforms the activations, which
    works with any kernel, including quantized kernels, since the kernel is not
    changed.
    """

    # The attributes that a stand-in lacks, to compute only the product.
    linear: ClassVar = {"bias": None, "activation": None}

    def call(
        self, inputs: Tensor, training: bool | Tensor | None = None
    ) -> Tensor:
        return self._computed(inputs, call=Call.of(self, training))

    def quantized_call(
        self, inputs: Tensor, training: bool | Tensor | None = None
    ) -> Tensor:
        return self._computed(inputs, call=Call.of(self, training))

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    def _broadcast_bias(self) -> Variable:
        return self.bias

    def _plain_call(
        self, inputs: Tensor, call: Call, **replaced: Any
    ) -> Tensor:
        return self._compute(**replaced)(inputs, training=call.training)

    def _adapted(self, inputs: Tensor, call: Call, factors: Sides) -> Tensor:
        if self.quantization_mode is not None:
            return super()._adapted(inputs, call, factors)
        if call.examples is not None:
            return self._each_example(inputs, call, factors)
        view, before, after = (
            self.ether.view,
            factors["input"],
            factors["output"],
        )
        kernel = tensor(self.base_kernel, self.compute_dtype)
        if self.base_kernel.trainable or not low_rank.is_cheaper(
            inputs, kernel, view, (before, after), call.gradient
        ):
            return super()._adapted(inputs, call, factors)
        bias = self.bias
        outputs = low_rank.folded_product(
            inputs,
            kernel,
            view,
            before,
            after,
            bias=None if bias is None else tensor(bias, self.compute_dtype),
            training=call.gradient,
            place=functools.partial(
                placement.as_activations, kernel=self.base_kernel
            ),
        )
        return outputs if call.activation is None else call.activation(outputs)

    def _each_example(
        self, inputs: Tensor, call: Call, factors: Sides
    ) -> Tensor:
        """The outputs if each example has its own factors."""
        before = factors["input"]
        adapter, view = self.ether, self.ether.view
        kernel = tensor(self.base_kernel, self.compute_dtype)
        unfolded = each_example.unfolded_is_cheaper(
            inputs, kernel, view, before
        )
        if not unfolded:
            inputs = adapter.transform_inputs(inputs, before, call.gradient)
        outputs = self._plain_call(inputs, call, **self.linear)
        if unfolded and before is not None:
            matrix = each_example.add_unfolded_each(
                view.outputs_matrix(outputs),
                view.inputs_matrix(inputs),
                view.kernel_matrix(kernel),
                *before,
            )
            outputs = view.from_outputs_matrix(matrix, like=outputs)
        outputs = adapter.transform_outputs(
            outputs, factors["output"], call.gradient
        )
        return self._finished(outputs, call)
