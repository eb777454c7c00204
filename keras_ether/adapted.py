"""The mixins that put an adapter around a layer with one kernel."""

import contextlib

import keras
from keras import ops

from keras_ether import product
from keras_ether import quantized
from keras_ether.adapter import quantizing_error
from keras_ether.quick_ops import tensor

SIDES = ("input", "output")


class Adapted:
    """A layer with an adapter, mixed in before a Keras layer class.

    `ether` is the layer's `Adapter`; the variable that the layer owns stays the
    base kernel, which a subclass answers as `base_kernel`.
    """

    _runs_base = False

    def _effective(self, kernel):
        """The transformed kernel, or `kernel` where it is wanted as it is.

        Integers are no numbers to transform: they are answered as codes.
        """
        if self._runs_base or not self.ether.built or not self.ether.active:
            return kernel
        if self.quantization_mode in quantized.INTEGERS + quantized.CALIBRATED:
            return kernel
        return self.ether.fold(ops.convert_to_tensor(kernel))

    def enable_lora(self, *args, **kwargs):
        raise ValueError(
            f"Layer '{self.name}' has an ETHER adapter and cannot have LoRA "
            "too. Call `keras_ether.merge` or `keras_ether.remove` first."
        )

    def quantize(self, mode=None, config=None, **kwargs):
        raise quantizing_error(self.path, mode or getattr(config, "mode", None))

    @property
    def dtype_policy(self):
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value):
        mode = keras.dtype_policies.get(value).quantization_mode
        # A policy that quantizes is kept even if quantizing then fails.
        if mode is not None and self.quantization_mode is None:
            raise quantizing_error(self.path, mode)
        keras.layers.Layer.dtype_policy.fset(self, value)

    @contextlib.contextmanager
    def _base(self, *suspended, **replaced):
        """Lets the layer's class run on the base kernel.

        Attributes named in `suspended`, such as the bias, are `None` meanwhile,
        those in `replaced` what is given. They are swapped in the instance's
        dictionary, out of sight of Keras's trackers.
        """
        attributes = self.__dict__
        replaced = {**dict.fromkeys(suspended), **replaced}
        saved = {name: attributes[name] for name in replaced}
        attributes.update(replaced, _runs_base=True)
        try:
            yield
        finally:
            attributes.update(saved, _runs_base=False)


class AdaptedKernel(Adapted):
    """A layer whose `kernel` answers the transformed kernel.

    On its own this mixin serves layers with a `call` of their own that computes
    with `self.kernel`: they fold the kernel at each call.
    """

    @property
    def base_kernel(self):
        """The variable that holds the kernel without the transformation."""
        return super().kernel

    @property
    def kernel(self):
        return self._effective(super().kernel)


class AdaptedCall(AdaptedKernel):
    """A linear layer that computes `activation((x H) W G + bias)`.

    By one product with a folded kernel where that is cheaper, see
    `keras_ether.product`, else by transforming the activations: that takes any
    kernel, a quantized one included, since it is not touched.
    """

    def call(self, inputs, training=None):
        return self._adapted(super().call, inputs, training)

    def quantized_call(self, inputs, training=None):
        return self._adapted(super().quantized_call, inputs, training)

    def _adapted(self, linear, inputs, training):
        adapter = self.ether
        if not adapter.active:
            return linear(inputs, training=training)
        if self.quantization_mode == "float8":
            # The kernel is of floats, and inputs and kernel are rounded at each
            # call, by scales that follow them. With a folded kernel these are
            # the scales of the merged model, which so computes the same.
            kernel = ops.convert_to_tensor(self.base_kernel)
            with self._base(_kernel=adapter.fold(kernel, training)):
                return linear(inputs, training=training)
        sides = [adapter.side_blocks(side, training) for side in SIDES]
        if self.quantization_mode is None and not self.base_kernel.trainable:
            kernel = tensor(self.base_kernel, self.compute_dtype)
            if product.pays(inputs, kernel, adapter.view, sides, training):
                bias = self.bias
                outputs = product.folded_product(
                    inputs,
                    kernel,
                    adapter.view,
                    *sides,
                    None if bias is None else tensor(bias, self.compute_dtype),
                    adapter.orthogonal,
                    training,
                )
                return self._activate(outputs)
        input_factors, output_factors = (
            None if blocks is None else blocks.factors() for blocks in sides
        )
        inputs = adapter.transform_inputs(inputs, input_factors, training)
        if output_factors is None:
            with self._base():
                return linear(inputs, training=training)
        # The output side stands before the bias and the activation, and a
        # quantized call fuses both into the product.
        with self._base("bias", "activation"):
            outputs = linear(inputs, training=training)
        outputs = adapter.transform_outputs(outputs, output_factors, training)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return self._activate(outputs)

    def _activate(self, outputs):
        return outputs if self.activation is None else self.activation(outputs)
