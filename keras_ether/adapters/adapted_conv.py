"""The mixins that put an adapter around a convolution."""

from typing import ClassVar

from keras import ops

from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapted import AdaptedKernel
from keras_ether.types import LayerMixin
from keras_ether.types import Tensor
from keras_ether.types import Variable


class AdaptedConv(AdaptedCall, AdaptedKernel):
    """A convolution that transforms its activations and not its kernel.

        y = activation(conv(x H, W) G + bias)

    `H` acts on the channels and `G` on the filters, in the same way at every
    position.
    """

    linear: ClassVar = {"use_bias": False, "activation": None}

    @property
    def has_bias(self) -> bool:
        return self.use_bias

    def _broadcast_bias(self) -> Tensor:
        if self.data_format == "channels_first":
            return ops.reshape(self.bias, (-1,) + (1,) * self.rank)
        return self.bias


class HeldKernel(LayerMixin):
    """Defines `kernel` for a class that holds it as a plain attribute.

    Transposed convolutions hold it so, and have no property that a mixin's
    property could call.
    """

    @property
    def kernel(self) -> Variable:
        return self.__dict__["kernel"]


class AdaptedHeldKernel(AdaptedKernel, HeldKernel):
    """`AdaptedKernel` for a class that holds its kernel as an attribute."""


class AdaptedConvTranspose(AdaptedConv, HeldKernel):
    """`AdaptedConv` for a class that holds its kernel as an attribute."""

    kernel_attribute = "kernel"
