"""The reasons why a layer can't have an adapter."""

import dataclasses
from collections.abc import Callable

import keras

from keras_ether.adapters import freezing
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.kinds import ADAPTER
from keras_ether.adapters.kinds import Kind
from keras_ether.adapters.kinds import computes_itself
from keras_ether.adapters.kinds import config_for
from keras_ether.adapters.kinds import is_adapted
from keras_ether.adapters.kinds import is_adapter
from keras_ether.adapters.kinds import kernel_shape
from keras_ether.adapters.kinds import kind_of
from keras_ether.adapters.kinds import known_kind
from keras_ether.adapters.kinds import nearest
from keras_ether.adapters.kinds import view_of
from keras_ether.types import Layer

# The reasons why some other classes have no adapter.
OTHERS = {
    keras.layers.DepthwiseConv1D: "a depthwise kernel mixes no channels",
    keras.layers.DepthwiseConv2D: "a depthwise kernel mixes no channels",
    keras.layers.SeparableConv1D: "its two kernels are one operation",
    keras.layers.SeparableConv2D: "its two kernels are one operation",
}


def why_unknown(layer: Layer) -> str | None:
    """The reason why a layer of an unknown kind is skipped.

    Returns:
        `None` if the layer owns no matrices, or has a known kind.
    """
    if kind_of(layer) or is_adapter(layer):
        return None
    if not any(len(v.shape) > 1 for v in freezing.own_variables(layer)):
        return None
    return nearest(layer, OTHERS) or "no adapter for its kind"


def refusal_reason(layer: Layer, config: AdapterConfig) -> str | None:
    """The reason why a layer of a known kind can't be adapted, or `None`."""
    kind = known_kind(layer)
    if not layer.built:
        return "it is not built"
    mode = layer.quantization_mode
    if mode in quantized_kernel.CALIBRATED and not getattr(
        layer, f"is_{mode}_calibrated"
    ):
        return f"it is marked for '{mode}' and was not calibrated"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled on it"
    if hasattr(layer, ADAPTER) and not is_adapted(layer):
        return f"it has an attribute `{ADAPTER}` of its own"
    if mode is None and not isinstance(
        getattr(layer, kind.kernel), keras.Variable
    ):
        return f"its `{kind.kernel}` is no variable, but computed"
    if config.side == "input" and not kind.has_input_side:
        return "it has no input side"
    experts, inputs, _ = view_of(layer).sizes(kernel_shape(layer))
    if experts > 1 and inputs == 1:
        return "each of its groups has a single channel"
    if not computes_itself(layer, kind):
        return None
    name = type(layer).__name__
    if not _call_reads_kernel(layer, kind):
        return f"the `call` of {name} does not read `self.{kind.kernel}` alone"
    if config.dropout:
        return f"the `call` of {name} folds the kernel and excludes `dropout`"
    return None


def why_constant(layer: Layer, config: AdapterConfig) -> str | None:
    """The reason why no number of blocks could train, or `None`.

    A unit vector of one entry, the only one for a side of width 1, is 1 or −1.
    """
    sizes = view_of(layer).sizes(kernel_shape(layer))
    whole = dataclasses.replace(config_for(layer, config), rank_blocks=1)
    narrowest = min(whole.widths(sizes).values())
    if narrowest >= config.variant.min_width:
        return None
    return f"'{config.method}' can't train on a side of width 1"


def _call_reads_kernel(layer: Layer, kind: Kind) -> bool:
    """Whether a subclass's `call` reads its kernel's property alone.

    The decision is made from the names that its code uses, following
    `super().call(...)` up to the class in the table, which reads the kernel.
    """
    bases = type(layer).__mro__
    own = bases[: bases.index(kind.layer_class)]
    for layer_class in own:
        call = vars(layer_class).get("call")
        if call is None:
            continue
        names = _names_used(call, own)
        if f"_{kind.kernel}" in names:
            return False
        if kind.kernel in names:
            return True
        if "call" not in names:
            return False
    return True


def _names_used(method: Callable, classes: tuple[type, ...]) -> set[str]:
    """The names in a method's code, and in helper methods of the same layer."""
    found: set[str] = set()
    todo = [method]
    while todo:
        code = getattr(todo.pop(), "__code__", None)
        new = set(code.co_names if code else ()) - found
        found |= new
        todo += [
            vars(layer_class)[name]
            for name in new - {"call"}
            for layer_class in classes
            if name in vars(layer_class)
        ]
    return found
