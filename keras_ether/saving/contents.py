"""The variables of a model that an adapter file stores, and its base.

There are three kinds of variables, each named by its layer's structural path:
the adapters' vectors; the other trained weights, mainly the head's; and the
base. The file stores only fingerprints of the base.
"""

import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping

import keras
import numpy as np

from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters.adapter import Adapter
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import fingerprint_all
from keras_ether.saving import adapter_header
from keras_ether.types import Layer

MADE_UP_NAME = re.compile(r"variable(_\d+)?")


def own_weights(layer: Layer) -> dict:
    """The weights that a layer owns itself, by process-independent names."""
    named: dict[str, keras.Variable] = {}
    for variable in freezing.own_weights(layer):
        made_up = MADE_UP_NAME.fullmatch(variable.name)
        name = stem = "variable" if made_up else variable.name
        count = 0
        while name in named:
            count += 1
            name = f"{stem}_{count}"
        named[name] = variable
    return named


def trains_as_whole(layer: Layer) -> bool:
    """Whether a layer trains as a whole: all its weights belong in the file."""
    if kinds.is_adapted(layer) or kinds.is_adapter(layer):
        return False
    return freezing.is_kept_trainable(layer) or any(
        # Float8 scales change in every layer.
        variable.trainable and not variable.overwrite_with_gradient
        for variable in own_weights(layer).values()
    )


def other_trained_weights(
    layers: dict[str, Layer],
) -> dict[str, dict[str, keras.Variable]]:
    """The weights that train or change besides the vectors, by path and name.

    The argument is `LayerTree.by_path`.
    """
    found: dict = {}
    seen: set[int] = set()
    for path, layer in layers.items():
        if kinds.is_adapter(layer):
            continue
        whole = trains_as_whole(layer)
        own = {
            name: variable
            for name, variable in own_weights(layer).items()
            if (whole or variable.trainable) and id(variable) not in seen
        }
        seen |= {id(variable) for variable in own.values()}
        if own:
            found[path] = own
    return found


def by_tensor(
    adapters: Mapping[str, Adapter],
    weights: dict[str, dict[str, keras.Variable]],
) -> dict[str, keras.Variable]:
    """Vectors and other weights by the names of their tensors in a file."""
    return {
        adapter_header.tensor_name("adapter", path, name): vector
        for path, adapter in adapters.items()
        for name, vector in adapter.vectors.items()
    } | {
        adapter_header.tensor_name("weights", path, name): variable
        for path, own in weights.items()
        for name, variable in own.items()
    }


def base_fingerprints(
    layers: dict[str, Layer],
    adapted: Collection[str],
    weights: dict[str, dict[str, keras.Variable]],
    digest: Callable[[keras.Variable], np.ndarray] = fingerprint,
) -> tuple[dict[str, str], str]:
    """Fingerprints of the base that an adapter was trained over.

    Args:
        layers: Dictionary from path to layer.
        adapted: The paths of layers that have, or will have, an adapter.
        weights: The weights that do not belong to the base, see
            `other_trained_weights`.
        digest: Function from a variable to its fingerprint, for callers that
            store them. Defaults to `keras_ether.ops.fingerprint.fingerprint`.

    Returns:
        A dictionary from adapted path to fingerprint, and one fingerprint of
        all other layers.
    """
    apart = {id(v) for own in weights.values() for v in own.values()}
    of_layers: dict[str, str] = {}
    others: dict[str, keras.Variable] = {}
    for path, layer in layers.items():
        if kinds.is_adapter(layer):
            continue
        own = {
            name: variable
            for name, variable in own_weights(layer).items()
            if id(variable) not in apart
        }
        if path in adapted:
            of_layers[path] = fingerprint_all(own, digest)
        else:
            others |= {f"{path}/{name}": v for name, v in own.items()}
    return of_layers, fingerprint_all(others, digest)


def random_states(layers: dict) -> dict:
    """The states of random generators, such as dropout's, by layer path."""
    found: dict = {}
    seen: set[int] = set()
    for path, layer in layers.items():
        weights = {id(weight) for weight in layer.weights}
        own = [
            variable
            for variable in freezing.own_variables(layer)
            if id(variable) not in weights | seen
        ]
        seen |= {id(variable) for variable in own}
        if own:
            found[path] = own
    return found
