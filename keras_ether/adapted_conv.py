"""The mixins that put an adapter around a convolution."""

from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapted import AdaptedKernel


class AdaptedConv(AdaptedKernel):
    """A convolution that transforms its activations and not its kernel.

        y = activation(conv(x H, W) G + bias)

    `H` and `G` act on the channels and on the filters, at every place alike.
    """

    def call(self, inputs):
        adapter = self.ether
        if not adapter.active:
            return super().call(inputs)
        training = internals.is_training()
        factors = adapter.factors("input", training)
        inputs = adapter.transform_inputs(inputs, factors, training)
        factors = adapter.factors("output", training)
        if factors is None:
            with self._base():
                return super().call(inputs)
        # The output side stands before the bias and the activation.
        with self._base("use_bias", "activation"):
            outputs = super().call(inputs)
        outputs = adapter.transform_outputs(outputs, factors, training)
        if self.use_bias:
            bias = self.bias
            if self.data_format == "channels_first":
                bias = ops.reshape(bias, (-1,) + (1,) * self.rank)
            outputs = ops.add(outputs, bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs


class HeldKernel:
    """Answers the `kernel` of a class that holds it as a plain attribute.

    Transposed convolutions do; a property of a mixin finds no property of
    theirs to ask.
    """

    @property
    def kernel(self):
        return self.__dict__["kernel"]


class AdaptedHeldKernel(AdaptedKernel, HeldKernel):
    """`AdaptedKernel` for a class that holds its kernel as an attribute."""


class AdaptedConvTranspose(AdaptedConv, HeldKernel):
    """`AdaptedConv` for a class that holds its kernel as an attribute."""
