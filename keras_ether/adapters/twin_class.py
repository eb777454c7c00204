"""The class that a layer becomes when an adapter is put into it."""

import functools
from typing import Any

from keras_ether import _keras_internals as internals
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.kinds import computes_itself
from keras_ether.adapters.kinds import known_kind
from keras_ether.adapters.quantized_weights_file import CalibratedFile
from keras_ether.adapters.quantized_weights_file import IntegerFile
from keras_ether.adapters.weights_file import PlainFile
from keras_ether.types import Layer

# The mixin that writes and reads a layer's files, by its quantization mode;
# `PlainFile` for all others.
FILES = {
    **dict.fromkeys(quantized_kernel.INTEGERS, IntegerFile),
    **dict.fromkeys(quantized_kernel.CALIBRATED, CalibratedFile),
}


def adapted_class(layer: Layer) -> type:
    """The class that a layer becomes when an adapter is put into it."""
    kind = known_kind(layer)
    folds = computes_itself(layer, kind)
    mixin = kind.folded if folds else kind.adapted
    file = FILES.get(layer.quantization_mode, PlainFile)
    layer_class: Any = type(layer)
    return _adapted_class(layer_class, mixin, file)


def is_twin(layer: Layer) -> bool:
    """Whether `adapted_class` made the layer's class."""
    return getattr(type(layer), "is_twin", False)


def plain_class(layer: Layer) -> type:
    """The class that an adapted layer had, or that it stands for."""
    return layer.plain_class


@functools.cache
def _adapted_class(layer_class: type[Layer], mixin: type, file: type) -> type:
    """A twin of `layer_class` that files name as they name the original.

    Keras's files name classes: containers keep their layers' weights under the
    class's name, a configuration names class and module, or the name that the
    class is registered by. The twin has all of these names, and layers made
    from its configuration, for example by `clone_model`, are of the plain
    class.
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
