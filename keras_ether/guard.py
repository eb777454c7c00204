"""`quantize` on an adapted model: an error before anything is touched.

`Layer.quantize` is bound to each layer when it is made, so the method of an
adapted layer's class does not replace it; and `Model.quantize` would pass over
layers that have sub-layers and quantize the others.
"""

import functools

import keras

from keras_ether.adapter import quantizing_error
from keras_ether.layers import kinds
from keras_ether.targets import walk

RECORD = "_ether_quantize_before"


def put_up(model):
    """Makes the `quantize` of adapted layers, and of models around them, raise.

    Args:
        model: A Keras model or layer, adapted.
    """
    for layer in [model, *walk(model).values()]:
        if RECORD in layer.__dict__:
            continue
        if isinstance(layer, keras.Model) or kinds.is_adapted(layer):
            quantize = layer.__dict__.pop("quantize")
            layer.__dict__[RECORD] = quantize
        if isinstance(layer, keras.Model):
            layer.__dict__["quantize"] = functools.partial(
                _quantize, layer, quantize
            )


def take_down(model):
    """Undoes `put_up`, for a model without adapters.

    Args:
        model: A Keras model or layer.
    """
    for layer in [model, *walk(model).values()]:
        if RECORD in layer.__dict__:
            layer.__dict__["quantize"] = layer.__dict__.pop(RECORD)


def _quantize(model, quantize, mode=None, *args, **kwargs):
    # The adapters may have been merged by way of a part or of a model around.
    for layer in walk(model).values():
        if kinds.is_adapted(layer):
            raise quantizing_error(layer.path, mode)
    return quantize(mode, *args, **kwargs)
