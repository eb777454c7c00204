"""What of a model belongs into an adapter file, and what is its base.

Three kinds of variables, each named by its layer's structural path: the
adapters' vectors; the weights that train beside them, those of the head above
all; and the rest, the base, of which a file holds fingerprints only.
"""

import re
from collections.abc import Callable

from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import fingerprint_all
from keras_ether.surgery.targets import walk

MADE_UP_NAME = re.compile(r"variable(_\d+)?")


def layers_of(model) -> dict:
    """Every layer of a model by path; the model itself has the path `""`."""
    layers = walk(model)
    if any(layer is model for layer in layers.values()):
        return layers
    return {"": model, **layers}


def own_weights(layer) -> dict:
    """The weights that a layer owns itself, by names that any process gives."""
    ids = {id(weight) for weight in layer.weights}
    named = {}
    for variable in freezing.own_variables(layer):
        if id(variable) not in ids:
            continue
        made_up = MADE_UP_NAME.fullmatch(variable.name)
        name = stem = "variable" if made_up else variable.name
        count = 0
        while name in named:
            count += 1
            name = f"{stem}_{count}"
        named[name] = variable
    return named


def is_kept(layer) -> bool:
    """Whether a layer trains as a whole: all its weights belong in the file."""
    if kinds.is_adapted(layer) or kinds.is_adapter(layer):
        return False
    return freezing.is_kept(layer) or any(
        # The scales of float8 move everywhere.
        variable.trainable and not variable.overwrite_with_gradient
        for variable in own_weights(layer).values()
    )


def travelling(layers: dict) -> dict:
    """The weights that train or move beside the vectors.

    Args:
        layers: Dictionary from path to layer, see `layers_of`.

    Returns:
        Dictionary from layer path to a dictionary from name to variable.
    """
    found, seen = {}, set()
    for path, layer in layers.items():
        if kinds.is_adapter(layer):
            continue
        whole = is_kept(layer)
        own = {
            name: variable
            for name, variable in own_weights(layer).items()
            if (whole or variable.trainable) and id(variable) not in seen
        }
        seen |= {id(variable) for variable in own.values()}
        if own:
            found[path] = own
    return found


def base_fingerprints(
    layers: dict, adapted, weights: dict, digest: Callable = fingerprint
):
    """Fingerprints of what an adapter was trained over.

    Args:
        layers: Dictionary from path to layer.
        adapted: The paths of layers that have, or will have, an adapter.
        weights: What does not belong to the base, see `travelling`.
        digest: Function from a variable to its fingerprint, for whoever keeps
            them. Defaults to `keras_ether.ops.fingerprint.fingerprint`.

    Returns:
        A dictionary from adapted path to fingerprint, and one fingerprint of
        all other layers.
    """
    apart = {id(v) for own in weights.values() for v in own.values()}
    of_layers, others = {}, {}
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
    """The states of random generators, of dropout for one, by layer path.

    Returns:
        Dictionary from layer path to a list of variables.
    """
    found, seen = {}, set()
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
