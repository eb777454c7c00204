"""The class of a layer with an adapter."""

from collections.abc import Iterator
from typing import Any

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.quantized_weights_file import CalibratedFile
from keras_ether.adapters.quantized_weights_file import IntegerFile
from keras_ether.adapters.weights_file import AdaptedFile
from keras_ether.types import Layer

# The mixin that writes and reads a layer's files, by its quantization mode;
# `AdaptedFile` for all others.
FILES = {
    **dict.fromkeys(quantized_kernel.INTEGERS, IntegerFile),
    **dict.fromkeys(quantized_kernel.CALIBRATED, CalibratedFile),
}


# The name of the changes that adapt a layer.
ADAPTED = "adapted"


def hold_standalone(layer: Layer, adapter: Adapter) -> None:
    """Freezes a layer of `keras_ether.layers`, and makes it removable."""
    owner = changes.Owner()
    owner.adapted.add(layer)
    with changes.all_or_none() as made:
        made.hold(
            layer,
            ADAPTED,
            owner,
            lambda: (
                changes.Class(layer, type(layer), layer.plain_class),
                changes.SubLayer(layer, kinds.ADAPTER, adapter),
            ),
        )
        freezing.freeze(made, layer, owner, trainable=True)


def adapting(layer: Layer, adapter: Adapter) -> Iterator[changes.Change]:
    """The changes that adapt a plain layer."""
    yield changes.Class(layer, adapted_class(layer), type(layer))
    yield changes.SubLayer(layer, kinds.ADAPTER, adapter)


def adapted_class(layer: Layer) -> type:
    """The class of a layer with an adapter."""
    kind = kinds.known_kind(layer)
    folds = kinds.computes_itself(layer, kind)
    mixin = kind.folded if folds else kind.adapted
    file = FILES.get(layer.quantization_mode, AdaptedFile)
    plain: Any = type(layer)
    bases = (file, mixin, plain)
    # A class knows its subclasses by weak references, so that a user's class
    # and its twin are freed when no layer is of them.
    for known in plain.__subclasses__():
        if known.__bases__ == bases and is_twin_class(known):
            return known
    return _twin(plain, bases)


def is_twin(layer: Layer) -> bool:
    """Whether `adapted_class` made the layer's class."""
    return is_twin_class(type(layer))


def is_twin_class(layer_class: type) -> bool:
    return vars(layer_class).get("is_twin", False)


def _twin(plain: Any, bases: tuple[type, ...]) -> type:
    """A subclass that Keras's files name as they name the original.

    Keras's files name classes: containers store their layers' weights under the
    class's name, and a configuration has the class and module, or the
    registered name. The twin has all of these names. Layers made from its
    configuration, for example by `clone_model`, have the plain class.
    """
    twin = type(
        plain.__name__,
        bases,
        {
            "__module__": plain.__module__,
            "__qualname__": plain.__qualname__,
            "__doc__": plain.__doc__,
            "plain_class": plain,
            "is_twin": True,
            "from_config": classmethod(
                lambda cls, config: plain.from_config(config)
            ),
        },
    )
    internals.share_registered_names(plain, twin)
    return twin
