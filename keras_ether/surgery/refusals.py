"""Methods that an adapted model refuses, before any change.

`Layer.quantize` is bound to each layer when it is made, so the method of an
adapted layer's class does not replace it. `Model.quantize` would skip layers
that have sub-layers, and quantize the others.

`enable_lora` of a KerasHub backbone first freezes every layer, adapters
included. On a layer which `apply` has frozen, it adds weights that do not
train.

Some of KerasHub's exporters for `export_to_transformers` read a layer's first
variable. In an adapted layer that is the base kernel, so the folder would hold
the base model without a warning.
"""

import functools
import weakref
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters.quantized_kernel import quantizing_error
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Layer

QUANTIZE = "quantize"
LORA = "enable_lora"
EXPORT = "export_to_transformers"
ADVICE = (
    "Enable LoRA first and apply ETHER to other layers then, or call "
    "`keras_ether.merge` or `keras_ether.remove` on the model before."
)


def quantizing(layer: Layer) -> changes.Change:
    """The change that makes a layer refuse to be quantized."""
    return changes.Method(layer, QUANTIZE, functools.partial(_quantize, layer))


def changes_for(layer: Layer, model: Layer) -> Iterator[changes.Change]:
    """The changes that make a layer of an adapted model refuse methods."""
    if isinstance(layer, keras.Model):
        yield quantizing(layer)
    if hasattr(type(layer), LORA):
        root = weakref.ref(model)
        yield changes.Method(
            layer, LORA, functools.partial(_enable_lora, layer, root)
        )
    if hasattr(type(layer), EXPORT):
        yield changes.Method(layer, EXPORT, functools.partial(_export, layer))


def _quantize(
    layer: Layer,
    quantize: Callable,
    mode: str | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Any:
    # The adapters may have been merged through a part or an outer model.
    adapted = _adapted_in(layer)
    if adapted:
        mode = mode or getattr(config, "mode", None)
        first = next(iter(adapted.values()))
        raise quantizing_error(first.path, mode)
    return quantize(mode, config, **kwargs)


def _enable_lora(
    layer: Layer,
    root: weakref.ref,
    enable_lora: Callable,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # The class of an adapted layer refuses LoRA itself.
    if kinds.is_adapted(layer):
        return enable_lora(*args, **kwargs)
    is_model = isinstance(layer, keras.Model)
    what = f"{'Model' if is_model else 'Layer'} '{layer.name}'"
    if _adapted_in(layer):
        raise ValueError(
            f"{what} has ETHER adapters, which LoRA would freeze. {ADVICE}"
        )
    model = root()
    is_frozen = freezing.is_frozen(layer)
    if is_frozen and model is not None and _adapted_in(model):
        raise ValueError(
            f"{what} is part of model '{model.name}', which has ETHER "
            "adapters, and is frozen: its LoRA weights would not train. "
            f"{ADVICE}"
        )
    return enable_lora(*args, **kwargs)


def _export(model: Layer, export: Callable, *args: Any, **kwargs: Any) -> Any:
    for path in _adapted_in(model):
        raise ValueError(
            f"Model '{model.name}' can't be exported to Transformers: its "
            f"layer '{path}' has an adapter, which that format can't hold. "
            "Call `keras_ether.merge(model)` first."
        )
    return export(*args, **kwargs)


def _adapted_in(layer: Layer) -> dict[str, Layer]:
    return LayerTree(layer).adapted
