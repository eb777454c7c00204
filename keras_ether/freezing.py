"""What trains and what doesn't, and the way back.

A frozen layer carries a record of its flags from before, so that they can be
put back from any model, or part of one, that the layer has become part of. Its
configuration, and with it a file of the model, has the flag from before too.
"""

import types

from keras_ether import _keras_internals as internals

RECORD = "_ether_trainable_before"
KEPT = "_ether_kept_trainable"
CONFIG = "get_config"


def own_variables(layer) -> list:
    """The variables of a layer that none of its sub-layers has."""
    inner = {
        id(variable)
        for child in internals.children(layer)
        for variable in child.variables
    }
    return [v for v in layer.variables if id(v) not in inner]


def freeze(layer, trainable: bool = False):
    """Freezes the variables that a layer owns itself.

    Args:
        layer: A Keras layer.
        trainable: What the layer's own flag becomes: true if a sub-layer of it
            trains. A layer whose flag is false also computes as in inference,
            which keeps batch normalization's moving statistics where they are.
    """
    variables = own_variables(layer)
    if RECORD not in layer.__dict__:
        flags = tuple((variable, variable.trainable) for variable in variables)
        layer.__dict__[RECORD] = (layer.trainable, flags)
    # The scales of float8 take the value of their gradient, and must.
    frozen = [v for v in variables if not v.overwrite_with_gradient]
    trainable = trainable or len(frozen) < len(variables)
    internals.set_trainable(layer, trainable)
    if trainable != layer.__dict__[RECORD][0]:
        layer.__dict__[CONFIG] = types.MethodType(_config_from_before, layer)
    for variable in frozen:
        variable.trainable = False


def keep(layer):
    """Marks a layer as one that stays trainable, for adapters added later."""
    layer.__dict__[KEPT] = True


def is_kept(layer) -> bool:
    """Whether `keep` marked the layer."""
    return KEPT in layer.__dict__


def thaw(layer):
    """Undoes `freeze` and `keep`."""
    layer.__dict__.pop(KEPT, None)
    record = layer.__dict__.pop(RECORD, None)
    if record is None:
        return
    layer.__dict__.pop(CONFIG, None)
    trainable, flags = record
    internals.set_trainable(layer, trainable)
    for variable, flag in flags:
        variable.trainable = flag


def _config_from_before(layer):
    """The layer's configuration, with the flag that it had before `freeze`."""
    # Keras asks whether this attribute is its own before it makes a
    # configuration from the constructor's arguments.
    method = layer.__dict__.pop(CONFIG)
    try:
        config = layer.get_config()
    finally:
        layer.__dict__[CONFIG] = method
    if "trainable" in config:
        config["trainable"] = layer.__dict__[RECORD][0]
    return config
