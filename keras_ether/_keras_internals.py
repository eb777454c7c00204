"""The private names of Keras that this package cannot do without.

Each stands in one small function. Tried with Keras 3.15 on JAX, TensorFlow and
PyTorch.
"""

import keras


def children(layer):
    """The layers that Keras tracks as direct parts of `layer`, in order."""
    return layer._flatten_layers(include_self=False, recursive=False)


def share_registered_names(known, other):
    """Has files name the class `other` as they name `known`."""
    for names in (
        keras.src.api_export.REGISTERED_OBJS_TO_NAMES,
        keras.src.saving.object_registration.GLOBAL_CUSTOM_NAMES,
    ):
        if known in names:
            names[other] = names[known]


def add_sublayer(layer, name, sublayer):
    """Sets an attribute to a layer although the state of `layer` is locked."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    setattr(layer, name, sublayer)
    if locked:
        layer._tracker.lock()


def remove_sublayer(layer, name):
    """Undoes `add_sublayer`."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    layer._tracker.untrack(getattr(layer, name))
    delattr(layer, name)
    if locked:
        layer._tracker.lock()


def set_trainable(layer, value):
    """Sets a layer's own flag, without the recursion of its property."""
    layer._trainable = value


def renew_torch_parameters(layer):
    """Lets PyTorch see a layer's variables of now; elsewhere does nothing."""
    if hasattr(layer, "_torch_params"):
        layer._track_variables()


def is_called_in_another_model(model):
    """Whether the graph of another functional model calls `model`."""
    return bool(model._inbound_nodes)


def forget_compiled_trainable_state(model):
    """Tells a model that its compiled state fits the flags of now.

    `fit` would warn otherwise that flags changed since `compile`.
    """
    if hasattr(model, "_compiled_trainable_state"):
        # Out of sight of the trackers, as Keras does it: the keys of a tracked
        # dictionary are sorted when PyTorch exports the model.
        model.__dict__["_compiled_trainable_state"] = {
            layer: layer.trainable for layer in model._flatten_layers()
        }


def is_training():
    """Whether the call that is going on is one of training.

    For layers whose `call` takes no `training` and so isn't told.
    """
    state = keras.src.backend.common.global_state
    context = state.get_global_attribute("current_call_ctx")
    return context is not None and bool(context.get_value("training"))


def copy_mask(source, target):
    """Gives a tensor the mask that another one carries, if it does."""
    mask = keras.src.backend.get_keras_mask(source)
    if mask is not None:
        keras.src.backend.set_keras_mask(target, mask)
