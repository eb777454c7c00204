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
from keras_ether.types import Factors
from keras_ether.types import Sides
from keras_ether.types import Tensor


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

    quantized_call = call

    def _plain_call(
        self, inputs: Tensor, call: Call, **replaced: Any
    ) -> Tensor:
        return self._compute(**replaced)(inputs, training=call.training)

    def _adapted(self, inputs: Tensor, call: Call, factors: Sides) -> Tensor:
        if self.quantization_mode is not None:
            return super()._adapted(inputs, call, factors)
        view = self.ether.view
        before, after = factors["input"], factors["output"]
        kernel = tensor(self.base_kernel, self.compute_dtype)
        if call.examples is not None:
            if before is not None and each_example.unfolded_is_cheaper(
                inputs, kernel, view, before
            ):
                return self._unfolded_each(inputs, call, before, after)
            return super()._adapted(inputs, call, factors)
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

    def _unfolded_each(
        self,
        inputs: Tensor,
        call: Call,
        before: Factors,
        after: Factors | None,
    ) -> Tensor:
        """The outputs with each example's pair of the input side unfolded."""
        view = self.ether.view
        kernel = tensor(self.base_kernel, self.compute_dtype)
        outputs = self._plain_call(inputs, call, **self.linear)
        matrix = each_example.add_unfolded_each(
            view.outputs_matrix(outputs),
            view.inputs_matrix(inputs),
            view.kernel_matrix(kernel),
            *before,
        )
        outputs = view.from_outputs_matrix(matrix, like=outputs)
        outputs = self.ether.transform_outputs(outputs, after, call.gradient)
        return self._finished(outputs, call)
