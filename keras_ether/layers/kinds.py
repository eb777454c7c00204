"""The table of layer classes that can be adapted, and how."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras

from keras_ether import _keras_internals as internals
from keras_ether import freezing
from keras_ether import methods
from keras_ether import quantized
from keras_ether.adapted import Adapted
from keras_ether.adapted import AdaptedDense
from keras_ether.adapted import AdaptedKernel
from keras_ether.adapted_conv import AdaptedConv
from keras_ether.adapted_conv import AdaptedConvTranspose
from keras_ether.adapted_conv import AdaptedHeldKernel
from keras_ether.adapted_embedding import AdaptedEmbedding
from keras_ether.adapted_embedding import AdaptedReversibleEmbedding
from keras_ether.adapted_embedding import AdaptedTable
from keras_ether.adapter import Adapter
from keras_ether.conv_view import ConvView
from keras_ether.matrix_view import MatrixView
from keras_ether.plain_file import PlainFile
from keras_ether.quantized_file import CalibratedFile
from keras_ether.quantized_file import IntegerFile


@dataclass(frozen=True)
class Kind:
    """How the kernel of one layer class is read and transformed.

    Args:
        layer_class: The Keras class.
        view: Function from a layer to its `MatrixView` or `ConvView`.
        adapted: Mixin that transforms the layer's activations.
        folded: Mixin for subclasses that compute in a way of their own: it
            answers the folded kernel.
        kernel: Name of the attribute that answers the kernel. Defaults to
            `"kernel"`.
        computes: Names of the methods that compute with the kernel. Defaults to
            `("call",)`.
        linear: Whether `targets="all-linear"` means it. Defaults to `False`.
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


def _dense(layer_class, view):
    return Kind(layer_class, view, AdaptedDense, AdaptedKernel, linear=True)


def _conv(layer_class):
    def view(layer):
        return ConvView(
            channels_first=layer.data_format == "channels_first",
            groups=layer.groups,
        )

    return Kind(
        layer_class,
        view,
        AdaptedConv,
        AdaptedKernel,
        computes=("call", "convolution_op"),
    )


def _conv_transpose(layer_class):
    def view(layer):
        return ConvView(
            channels_first=layer.data_format == "channels_first",
            transposed=True,
        )

    return Kind(layer_class, view, AdaptedConvTranspose, AdaptedHeldKernel)


def _embedding(layer_class, adapted):
    # Ids stand for rows of the table: there are no inputs to transform.
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

# Why layers of some other classes have no adapter.
OTHERS = {
    keras.layers.DepthwiseConv1D: "a depthwise kernel mixes no channels",
    keras.layers.DepthwiseConv2D: "a depthwise kernel mixes no channels",
    keras.layers.SeparableConv1D: "its two kernels are one operation",
    keras.layers.SeparableConv2D: "its two kernels are one operation",
}

# The mixin that writes and reads a layer's files, by its quantization mode;
# `PlainFile` for all others.
FILES = {
    **dict.fromkeys(quantized.INTEGERS, IntegerFile),
    **dict.fromkeys(quantized.CALIBRATED, CalibratedFile),
}

# The attribute of an adapted layer that holds its adapter.
ADAPTER = "ether"


def is_adapted(layer) -> bool:
    """Whether a layer has an adapter."""
    return isinstance(layer, Adapted)


def is_adapter(layer) -> bool:
    """Whether a layer is an adapter."""
    return isinstance(layer, Adapter)


def kind_of(layer) -> Kind | None:
    """The entry for a layer's class or its nearest base, or `None`."""
    return _nearest(layer, {kind.layer_class: kind for kind in KINDS})


def kernel_shape(layer) -> tuple[int, ...]:
    """The shape of the kernel of a layer of a known kind."""
    if layer.quantization_mode in quantized.CALIBRATED:
        # What answers as kernel there are codes, transposed and flattened.
        shape = getattr(layer, "original_kernel_shape", None)
        return tuple(shape or layer.kernel_shape)
    return tuple(getattr(layer, kind_of(layer).kernel).shape)


def side_of(layer, method: str, side: str | None) -> str:
    """The side that `side` means for a layer of a known kind.

    Raises:
        ValueError: if the layer has no such side.
    """
    if kind_of(layer).has_input_side:
        return side or methods.get(method).side
    if side == "input":
        raise ValueError(
            f"Layer '{layer.name}' of class {layer.__class__.__name__} has no "
            "input side. `side` must be 'output', or None. Received: "
            f"side={side!r}"
        )
    return "output" if side in (None, "both") else side


def why_unknown(layer) -> str | None:
    """The reason that a layer of no known kind is passed over.

    Returns:
        `None` if the layer has no matrices of its own, or is of a known kind.
    """
    if kind_of(layer) or is_adapter(layer):
        return None
    if not any(len(v.shape) > 1 for v in freezing.own_variables(layer)):
        return None
    return _nearest(layer, OTHERS) or "no adapter for its kind"


def why_not(layer, dropout: float = 0.0, side: str | None = None) -> str | None:
    """The reason that a layer of a known kind can't be adapted, or `None`."""
    kind = kind_of(layer)
    if not layer.built:
        return "it is not built"
    mode = layer.quantization_mode
    if mode in quantized.CALIBRATED and not getattr(
        layer, f"is_{mode}_calibrated"
    ):
        return f"it is marked for '{mode}' and was not calibrated"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if side == "input" and not kind.has_input_side:
        return "it has no input side"
    experts, inputs, _ = kind.view(layer).sizes(kernel_shape(layer))
    if experts > 1 and inputs == 1:
        return "each of its groups sees a single channel"
    if not _computes_itself(layer, kind):
        return None
    name = type(layer).__name__
    if not _call_reads_kernel(layer, kind):
        return f"the `call` of {name} does not read `self.{kind.kernel}`"
    if dropout:
        return f"the `call` of {name} folds the kernel, without `dropout`"
    return None


def why_constant(layer, method: str, side: str | None) -> str | None:
    """The reason that no count of blocks could train, or `None`.

    A unit vector of one number, all that there is for a side of one number, is
    1 or −1.
    """
    _, inputs, outputs = kind_of(layer).view(layer).sizes(kernel_shape(layer))
    side = side_of(layer, method, side)
    sizes = {"input": [inputs], "output": [outputs]}
    if min(sizes.get(side, [inputs, outputs])) >= methods.get(method).min_width:
        return None
    return f"'{method}' can't train on a side of one number"


def adapted_class(layer) -> type:
    """The class that a layer becomes when an adapter is put into it."""
    kind = kind_of(layer)
    folds = _computes_itself(layer, kind)
    mixin = kind.folded if folds else kind.adapted
    file = FILES.get(layer.quantization_mode, PlainFile)
    return _adapted_class(type(layer), mixin, file)


def is_twin(layer) -> bool:
    """Whether `adapted_class` made the layer's class."""
    return getattr(type(layer), "is_twin", False)


def plain_class(layer) -> type:
    """The class that an adapted layer had, or that it stands for."""
    return layer.plain_class


@functools.cache
def _adapted_class(layer_class, mixin, file):
    """A twin of `layer_class` that passes for it in files.

    Keras's files name classes: containers keep their layers' weights under the
    class's name, a configuration names class and module, or the name that the
    class is registered by. The twin has all of them, and what is made from its
    configuration, by `clone_model` for one, is of the plain class.
    """
    twin = type(
        layer_class.__name__,
        (file, mixin, layer_class),
        {
            "__module__": layer_class.__module__,
            "__qualname__": layer_class.__qualname__,
            "__doc__": layer_class.__doc__,
            "plain_class": layer_class,
            "is_twin": True,
            "from_config": classmethod(
                lambda cls, config: layer_class.from_config(config)
            ),
        },
    )
    internals.share_registered_names(layer_class, twin)
    return twin


def _nearest(layer, table):
    """The entry of the first class among a layer's bases that has one."""
    for layer_class in type(layer).__mro__:
        if layer_class in table:
            return table[layer_class]
    return None


def _computes_itself(layer, kind):
    """Whether a subclass does not compute as the class in the table does."""
    return layer.quantization_mode is None and any(
        getattr(type(layer), name) is not getattr(kind.layer_class, name)
        for name in kind.computes
    )


def _call_reads_kernel(layer, kind):
    """Whether a `call` of a subclass computes with its kernel's property.

    Judged from the names that its code uses, following `super().call(...)` up
    to the class in the table, which does.
    """
    for layer_class in type(layer).__mro__:
        if layer_class is kind.layer_class:
            return True
        call = vars(layer_class).get("call")
        if call is None:
            continue
        names = getattr(call, "__code__", None)
        names = names.co_names if names else ()
        if kind.kernel in names:
            return True
        if "call" not in names:
            return False
    return False
