"""The table of layer classes that can be adapted, and how."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import keras

from keras_ether.adapted import AdaptedCall
from keras_ether.adapted import AdaptedKernel
from keras_ether.adapter import Adapter
from keras_ether.matrix_view import MatrixView
from keras_ether.plain_file import PlainFile


@dataclass(frozen=True)
class Kind:
    """How the kernel of one layer class is read as a matrix.

    Args:
        layer_class: The Keras class.
        view: Function from a layer to its `MatrixView`.
        linear: Whether `targets="all-linear"` means it.
    """

    layer_class: type
    view: Callable
    linear: bool


KINDS = (
    Kind(
        layer_class=keras.layers.Dense,
        view=lambda layer: MatrixView("...d,df->...f", is_matmul=True),
        linear=True,
    ),
    Kind(
        layer_class=keras.layers.EinsumDense,
        view=lambda layer: MatrixView(layer.equation),
        linear=True,
    ),
)


# The attribute of an adapted layer that holds its adapter.
ADAPTER = "ether"


def is_adapted(layer) -> bool:
    """Whether a layer has an adapter."""
    return isinstance(layer, AdaptedKernel)


def is_adapter(layer) -> bool:
    """Whether a layer is an adapter."""
    return isinstance(layer, Adapter)


def kind_of(layer) -> Kind | None:
    """The entry for a layer's class or its nearest base, or `None`."""
    table = {kind.layer_class: kind for kind in KINDS}
    for layer_class in type(layer).__mro__:
        if layer_class in table:
            return table[layer_class]
    return None


def why_not(layer, dropout: float = 0.0) -> str | None:
    """The reason that a layer of a known kind can't be adapted, or `None`."""
    kind = kind_of(layer)
    if not layer.built:
        return "it is not built"
    if layer.quantization_mode in ("gptq", "awq"):
        return f"kernels quantized by '{layer.quantization_mode}' are not read"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if not _has_own_call(layer, kind):
        return None
    name = type(layer).__name__
    if not _call_reads_kernel(layer, kind):
        return f"the `call` of {name} does not read `self.kernel`"
    if dropout:
        return f"the `call` of {name} folds the kernel, without `dropout`"
    return None


def adapted_class(layer) -> type:
    """The class that a layer becomes when an adapter is put into it."""
    own_call = _has_own_call(layer, kind_of(layer))
    return _adapted_class(
        type(layer), AdaptedKernel if own_call else AdaptedCall
    )


def plain_class(layer) -> type:
    """The class that an adapted layer had, or that it stands for."""
    if isinstance(layer, PlainFile):
        return layer.__class__
    return kind_of(layer).layer_class


@functools.cache
def _adapted_class(layer_class, mixin):
    """A twin of `layer_class` that passes for it.

    Keras's files name classes: containers keep their layers' weights under the
    class's name, a configuration names class and module, a registered class is
    looked up by identity. `__class__` therefore answers the plain class, so all
    of them, `clone_model` too, see what a plain model has.
    """
    return type(
        layer_class.__name__,
        (PlainFile, mixin, layer_class),
        {
            "__module__": layer_class.__module__,
            "__doc__": layer_class.__doc__,
            "__class__": property(lambda self: layer_class),
        },
    )


def _has_own_call(layer, kind):
    return (
        layer.quantization_mode is None
        and type(layer).call is not kind.layer_class.call
    )


def _call_reads_kernel(layer, kind):
    """Whether a `call` of a subclass computes with `self.kernel`.

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
        if "kernel" in names:
            return True
        if "call" not in names:
            return False
    return False
