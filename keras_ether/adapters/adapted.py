"""The mixins that put an adapter around a layer with one kernel.

A call does not change the layer, so it may run in several threads, be traced,
and run again when activations are rematerialized. If the layer's own class must
compute with another kernel, or without its bias, the call runs on a stand-in:
an object of that class with the layer's attributes except these.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.call import Call
from keras_ether.adapters.quantized_kernel import quantizing_error
from keras_ether.adapters.reduction import Reduced
from keras_ether.ops.backend import add_to
from keras_ether.ops.backend import dtype_name
from keras_ether.ops.backend import is_sparse
from keras_ether.types import Layer
from keras_ether.types import LayerMixin
from keras_ether.types import Sides
from keras_ether.types import Tensor
from keras_ether.types import Variable


class Adapted(Reduced):
    """A layer with an adapter, mixed in before a Keras layer class.

    `ether` is the layer's `Adapter`. The layer's own variable stays the base
    kernel, which a subclass returns as `base_kernel`. `plain_class` is the
    layer's class without an adapter.
    """

    def _effective(self, kernel: Tensor) -> Tensor:
        """The transformed kernel. Integer codes are returned unchanged."""
        if not self.ether.built:
            return kernel
        per_example.refuse_kernel(self, "kernel")
        if self.quantization_mode in quantized_kernel.CODES:
            return kernel
        return self.ether.fold(ops.convert_to_tensor(kernel))

    def stand_in(self, **replaced: Any) -> Layer:
        """A plain layer of the same attributes but for those in `replaced`.

        It shares variables and sub-layers with this one, and is used for one
        call.
        """
        other = object.__new__(self.plain_class)
        other.__dict__.update(self.__dict__)
        other.__dict__.update(replaced)
        return other

    def _compute(self, **replaced: Any) -> Callable:
        """The computation of the layer's plain class, on a stand-in."""
        other = self.stand_in(**replaced)
        if self.quantization_mode is not None:
            return other.quantized_call
        return other.call

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"Layer '{self.name}' has an ETHER adapter and cannot have LoRA "
            "too. Call `keras_ether.merge` or `keras_ether.remove` first."
        )

    def quantize(
        self, mode: str | None = None, config: Any = None, **kwargs: Any
    ) -> None:
        raise quantizing_error(self.path, mode or getattr(config, "mode", None))

    @property
    def dtype_policy(self) -> keras.DTypePolicy:
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value: Any) -> None:
        mode = keras.dtype_policies.get(value).quantization_mode
        # A policy that quantizes is kept even if quantizing then fails.
        if mode is not None and self.quantization_mode is None:
            raise quantizing_error(self.path, mode)
        keras.layers.Layer.dtype_policy.fset(self, value)


class AdaptedKernel(Adapted):
    """A layer whose `kernel` is the transformed kernel.

    Used alone, this mixin is for layers whose own `call` computes with
    `self.kernel`: they fold the kernel at each call.
    """

    # The attribute that a stand-in computes with.
    kernel_attribute = "_kernel"

    @property
    def base_kernel(self) -> Variable:
        """The variable that holds the kernel without the transformation."""
        return super().kernel

    @property
    def kernel(self) -> Tensor:
        return self._effective(super().kernel)


class AdaptedCall(LayerMixin):
    """A layer whose call transforms activations, or multiplies by a fold."""

    def call(self, inputs: Tensor) -> Tensor:
        return self._computed(inputs, call=Call.of(self))

    # The same function, since calibrating a layer leaves it an attribute
    # `call`.
    quantized_call = call

    def _computed(self, inputs: Tensor, *, call: Call) -> Tensor:
        inputs = self._of_examples(inputs, call)
        if self._computes_with_fold(inputs):
            kernel = ops.convert_to_tensor(self.base_kernel)
            replaced = {
                self.kernel_attribute: self.ether.fold(kernel, call),
                "activation": call.activation,
            }
            return self._plain_call(inputs, call, **replaced)
        if dtype_name(inputs) != self.compute_dtype:
            # As the plain layer's operations would, integers and booleans too.
            dtype = keras.backend.result_type(inputs.dtype, self.compute_dtype)
            inputs = ops.cast(inputs, dtype)
        return self._adapted(inputs, call, call.factors(self.ether))

    def _of_examples(self, inputs: Tensor, call: Call) -> Tensor:
        """The inputs, checked if each example has its own adapter."""
        if call.examples is None:
            return inputs
        if is_sparse(inputs):
            raise per_example.NoExamplesError(
                f"Layer '{self.path}' received sparse inputs in a call in "
                "which each example has its own adapter. Pass dense inputs."
            )
        return call.examples.check(self, inputs)

    def _computes_with_fold(self, inputs: Tensor) -> bool:
        """Whether the plain layer computes with a folded kernel.

        Sparse inputs are not transformed, because the result would be dense. A
        float8 layer rounds inputs and kernel at each call, with scales that
        depend on them. With a folded kernel these are the scales of the merged
        model, so both compute the same.
        """
        mode = self.quantization_mode
        return mode == "float8" or (mode is None and is_sparse(inputs))

    def _adapted(self, inputs: Tensor, call: Call, factors: Sides) -> Tensor:
        """The layer's outputs, computed by transforming its activations.

        `inputs` are in the dtype of the layer's products.
        """
        adapter, after = self.ether, factors["output"]
        inputs = adapter.transform_inputs(
            inputs, factors["input"], call.gradient
        )
        if after is None:
            return self._plain_call(inputs, call, activation=call.activation)
        # The output side comes before the bias and the activation, and a
        # quantized call fuses both into the product.
        outputs = self._plain_call(inputs, call, **self.linear)
        outputs = adapter.transform_outputs(outputs, after, call.gradient)
        return self._finished(outputs, call)

    def _plain_call(
        self, inputs: Tensor, call: Call, **replaced: Any
    ) -> Tensor:
        return self._compute(**replaced)(inputs)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    def _broadcast_bias(self) -> Tensor:
        return self.bias

    def _finished(self, outputs: Tensor, call: Call) -> Tensor:
        """Bias and activation on outputs to which nothing else refers."""
        if self.has_bias:
            bias = ops.convert_to_tensor(self._broadcast_bias())
            outputs = add_to(outputs, bias)
        return outputs if call.activation is None else call.activation(outputs)

    def rematerialized_call(
        self,
        layer_call: Callable,
        *args: Any,
        training: bool | Tensor | None = None,
        **kwargs: Any,
    ) -> Callable:
        call = Call.of(self, training)
        # What is no tensor would become one on JAX, such as `reverse`.
        run = call.rematerialized(
            self, functools.partial(self._computed, **kwargs)
        )
        if not internals.recomputes_activation(self):
            run = super().rematerialized_call(run, *args, **kwargs)
        return lambda *args, **_: run(*args)
