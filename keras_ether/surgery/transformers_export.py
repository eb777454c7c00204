"""KerasHub's `export_to_transformers`, which has to wait for `merge`.

Some of its exporters read a layer's first variable. In an adapted layer that is
the base kernel, and the folder would hold the base model without a word.
"""

import functools

from keras_ether.adapters import kinds
from keras_ether.adapters import shadowing
from keras_ether.surgery.targets import walk

EXPORT = "export_to_transformers"


def suspend(model):
    """Has a model of KerasHub refuse to export while it has adapters."""
    if hasattr(type(model), EXPORT):
        shadowing.shadow(model, EXPORT, functools.partial(_export, model))


def resume(model):
    """Undoes `suspend`."""
    shadowing.restore(model, EXPORT)


def _export(model, export, *args, **kwargs):
    for path, layer in walk(model).items():
        if kinds.is_adapted(layer):
            raise ValueError(
                f"Model '{model.name}' can't be exported to Transformers: its "
                f"layer '{path}' has an adapter, which is no part of that "
                "format. Call `keras_ether.merge(model)` first."
            )
    return export(*args, **kwargs)
