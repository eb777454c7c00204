"""The table of layer classes that can be adapted, with views and mixins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapted import Adapted
from keras_ether.adapters.adapted import AdaptedKernel
from keras_ether.adapters.adapted_conv import AdaptedConv
from keras_ether.adapters.adapted_conv import AdaptedConvTranspose
from keras_ether.adapters.adapted_conv import AdaptedHeldKernel
from keras_ether.adapters.adapted_dense import AdaptedDense
from keras_ether.adapters.adapted_embedding import AdaptedEmbedding
from keras_ether.adapters.adapted_embedding import AdaptedReversibleEmbedding
from keras_ether.adapters.adapted_embedding import AdaptedTable
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.ops.conv_view import ConvView
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Layer


@dataclass(frozen=True)
class Kind:
    """How the kernel of one layer class is read and transformed.

    Args:
        layer_class: The Keras class.
        view: Function from a layer to its `MatrixView` or `ConvView`.
        adapted: Mixin that transforms the layer's activations.
        folded: Mixin for subclasses with their own computation: it returns the
            folded kernel.
        kernel: Name of the attribute that returns the kernel. Defaults to
            `"kernel"`.
        computes: Names of the methods that compute with the kernel. Defaults to
            `("call",)`.
        linear: Whether `targets="all-linear"` includes it. Defaults to `False`.
        has_input_side: Whether the input can be transformed. Defaults to
            `True`.
    """

    layer_class: type
    view: Callable
    adapted: type
    folded: type
    kernel: str = "kernel"
    computes: tuple[str, ...] = ("call",)
    linear: bool = False
    has_input_side: bool = True


def _dense(layer_class: type, view: Callable[[Layer], MatrixView]) -> Kind:
    return Kind(layer_class, view, AdaptedDense, AdaptedKernel, linear=True)


def _conv(layer_class: type) -> Kind:
    return Kind(
        layer_class,
        lambda layer: ConvView(
            channels_first=layer.data_format == "channels_first",
            groups=layer.groups,
        ),
        AdaptedConv,
        AdaptedKernel,
        computes=("call", "convolution_op"),
    )


def _conv_transpose(layer_class: type) -> Kind:
    return Kind(
        layer_class,
        lambda layer: ConvView(
            channels_first=layer.data_format == "channels_first",
            transposed=True,
        ),
        AdaptedConvTranspose,
        AdaptedHeldKernel,
    )


def _embedding(layer_class: type, adapted: type) -> Kind:
    # Ids select rows of the table: there are no inputs to transform.
    return Kind(
        layer_class,
        lambda layer: MatrixView("...d,df->...f"),
        adapted,
        AdaptedTable,
        kernel="embeddings",
        has_input_side=False,
    )


KINDS = (
    _dense(
        keras.layers.Dense,
        lambda layer: MatrixView("...d,df->...f", is_matmul=True),
    ),
    _dense(keras.layers.EinsumDense, lambda layer: MatrixView(layer.equation)),
    _conv(keras.layers.Conv1D),
    _conv(keras.layers.Conv2D),
    _conv(keras.layers.Conv3D),
    _conv_transpose(keras.layers.Conv1DTranspose),
    _conv_transpose(keras.layers.Conv2DTranspose),
    _conv_transpose(keras.layers.Conv3DTranspose),
    _embedding(keras.layers.Embedding, AdaptedEmbedding),
    _embedding(keras.layers.ReversibleEmbedding, AdaptedReversibleEmbedding),
)

# The attribute of an adapted layer that holds its adapter.
ADAPTER = "ether"


def is_adapted(layer: Layer) -> bool:
    return isinstance(layer, Adapted)


def is_adapter(layer: Layer) -> bool:
    return isinstance(layer, Adapter)


def kind_of(layer: Layer) -> Kind | None:
    """The entry for a layer's class or its nearest base, or `None`."""
    return nearest(layer, {kind.layer_class: kind for kind in KINDS})


def known_kind(layer: Layer) -> Kind:
    """The entry for a layer that can be adapted.

    Raises:
        ValueError: if there is none.
    """
    kind = kind_of(layer)
    if kind is None:
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} can't have "
            "an adapter."
        )
    return kind


def view_of(layer: Layer) -> MatrixView | ConvView:
    """The matrix view of the kernel of a layer that can be adapted."""
    return known_kind(layer).view(layer)


def is_linear(layer: Layer) -> bool:
    """Whether `targets="all-linear"` includes the layer."""
    kind = kind_of(layer)
    return kind is not None and kind.linear


def kernel_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the kernel of a layer of a known kind."""
    if layer.quantization_mode in quantized_kernel.CALIBRATED:
        # The `kernel` attribute holds transposed and flattened codes there.
        shape = getattr(layer, "original_kernel_shape", None)
        return tuple(shape or layer.kernel_shape)
    return tuple(getattr(layer, known_kind(layer).kernel).shape)


def config_for(layer: Layer, config: AdapterConfig) -> AdapterConfig:
    """A config with its side resolved for a layer of a known kind.

    Raises:
        ValueError: if the layer has no such side.
    """
    if known_kind(layer).has_input_side:
        return config.resolved
    if config.side == "input":
        raise ValueError(
            f"Layer '{layer.name}' of class {layer.__class__.__name__} has no "
            "input side. `side` must be 'output' or None. Received: "
            f"side={config.side!r}"
        )
    return config.on_side("output")


def nearest(layer: Layer, table: dict) -> Any:
    """The entry of the first class among a layer's bases that has one."""
    for layer_class in type(layer).__mro__:
        if layer_class in table:
            return table[layer_class]
    return None


def computes_itself(layer: Layer, kind: Kind) -> bool:
    """Whether a subclass computes differently from the class in the table."""
    return layer.quantization_mode is None and any(
        getattr(type(layer), name) is not getattr(kind.layer_class, name)
        for name in kind.computes
    )
