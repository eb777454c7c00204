"""Methods that an adapted model refuses before anything is touched.

`Layer.quantize` is bound to each layer when it is made, so the method of an
adapted layer's class does not replace it; and `Model.quantize` would pass over
layers that have sub-layers and quantize the others.

`enable_lora` of a KerasHub backbone freezes every layer first, the adapters
among them, and that of a layer which `apply` has frozen gives it weights that
do not train.
"""

import functools
import weakref

import keras

from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import shadowing
from keras_ether.adapters.arguments import quantizing_error
from keras_ether.surgery.targets import walk

QUANTIZE = "quantize"
LORA = "enable_lora"
ADVICE = (
    "Enable LoRA first and apply ETHER to other layers then, or call "
    "`keras_ether.merge` or `keras_ether.remove` on the model before."
)


def put_up(model):
    """Makes the layers of a model refuse what its adapters can't bear.

    Args:
        model: A Keras model or layer, adapted.
    """
    root = weakref.ref(model)
    for layer in [model, *walk(model).values()]:
        adapted = kinds.is_adapted(layer)
        if adapted or isinstance(layer, keras.Model):
            shadowing.shadow(
                layer, QUANTIZE, functools.partial(_quantize, layer)
            )
        # The class of an adapted layer refuses LoRA itself.
        has_lora = hasattr(type(layer), LORA) and not adapted
        if has_lora and freezing.is_frozen(layer):
            shadowing.shadow(
                layer, LORA, functools.partial(_enable_lora, layer, root)
            )


def take_down(model):
    """Undoes `put_up`, for a model without adapters.

    Args:
        model: A Keras model or layer.
    """
    for layer in [model, *walk(model).values()]:
        shadowing.restore(layer, QUANTIZE)
        shadowing.restore(layer, LORA)


def _quantize(layer, quantize, mode=None, config=None, **kwargs):
    # The adapters may have been merged by way of a part or of a model around.
    adapted = _adapted_in(layer)
    if adapted:
        mode = mode or getattr(config, "mode", None)
        raise quantizing_error(adapted[0].path, mode)
    return quantize(mode, config, **kwargs)


def _enable_lora(layer, root, enable_lora, *args, **kwargs):
    is_model = isinstance(layer, keras.Model)
    what = f"{'Model' if is_model else 'Layer'} '{layer.name}'"
    if _adapted_in(layer):
        raise ValueError(
            f"{what} has ETHER adapters, which LoRA would freeze. {ADVICE}"
        )
    model = root()
    if model is not None and _adapted_in(model):
        raise ValueError(
            f"{what} is part of model '{model.name}', which has ETHER "
            "adapters, and is frozen: its LoRA weights would not train. "
            f"{ADVICE}"
        )
    # Its adapters are gone by way of a part, which leaves the rest frozen.
    if not is_model and not layer.trainable:
        raise ValueError(
            f"{what} is frozen by `keras_ether.apply`: its LoRA weights would "
            "not train. Set its `trainable` to True first."
        )
    return enable_lora(*args, **kwargs)


def _adapted_in(layer):
    return [part for part in walk(layer).values() if kinds.is_adapted(part)]
