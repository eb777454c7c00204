"""The private names of Keras that this package cannot do without.

Each stands in one small function. Tried with Keras 3.15 on JAX, TensorFlow and
PyTorch.
"""

import contextlib
import functools
import io

import keras


def children(layer):
    """The layers that Keras tracks as direct parts of `layer`, in order."""
    return layer._flatten_layers(include_self=False, recursive=False)


def held_variables(layer):
    """The variables that are attributes of `layer`, whoever made them."""
    return layer._trainable_variables + layer._non_trainable_variables


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


def tracker_attributes(owner):
    """The attributes of what tracks the parts of a layer or an optimizer."""
    tracker = getattr(owner, "_tracker", None)
    return {} if tracker is None else vars(tracker)


def unwrapped(value):
    """What holds the parts of a list or dictionary that TensorFlow has wrapped.

    It wraps those that are attributes of a layer or an optimizer. Of a list it
    keeps records beside, which have to agree with it: all of them are answered.
    """
    if isinstance(value, list) and hasattr(value, "_storage"):
        return vars(value)
    if isinstance(value, dict):
        return getattr(value, "__wrapped__", value)
    return value


def own_attributes(optimizer):
    """An optimizer's attributes, without the lists of all its variables."""
    lists = ("_variables", "_trainable_variables")
    return {
        name: value
        for name, value in vars(optimizer).items()
        # TensorFlow's records of what belongs to a checkpoint.
        if name not in lists and not name.startswith("_self_")
    }


def tracked_variables(optimizer):
    """An optimizer's own variables, in the order in which they were made."""
    return optimizer._variables


def trained_variables(optimizer):
    """The variables that a built optimizer was built for."""
    return optimizer._trainable_variables


def update_count(optimizer):
    """The variable that counts an optimizer's updates.

    `iterations` counts accumulated ones, and is that of a wrapped optimizer.
    """
    return optimizer._iterations


def rate_set(optimizer):
    """What an optimizer's learning rate was set to: a variable or schedule."""
    return optimizer._learning_rate


def set_unbuilt(optimizer, slots):
    """Has an optimizer forget what it was built for.

    Keras offers no way back from `build`: an optimizer that trains something
    else has to be made again, from its configuration, which not all have and
    which leaves out what was set since.

    Args:
        optimizer: A Keras optimizer.
        slots: Ids of variables of its own that are in its attributes no more.
    """
    optimizer._tracker.stored_ids["variables"] -= slots
    vars(optimizer)["_trainable_variables"] = []
    # By id or name of a variable.
    for name in (
        "_trainable_variables_indices",
        "_exclude_from_weight_decay_cache",
    ):
        dict.clear(unwrapped(getattr(optimizer, name, {})))
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        # `build` asks a function for others.
        chosen = optimizer._optimizer_map
        known = [*getattr(chosen, "values", list)()]
        known.append(getattr(chosen, "default_optimizer", None))
        optimizer._inner_optimizers[:] = [
            inner
            for inner in optimizer._inner_optimizers
            if any(inner is other for other in known)
        ]
    optimizer.built = False


def renew_torch_parameters(layer):
    """Lets PyTorch see a layer's variables of now; elsewhere does nothing."""
    if hasattr(layer, "_torch_params"):
        layer._track_variables()


def torch_layer_class() -> type:
    """The PyTorch module that every Keras layer is on that backend."""
    return keras.src.backend.torch.layer.TorchLayer


def everything_in(layer) -> list:
    """A layer and all layers below it."""
    return layer._flatten_layers()


def hook_layer_reduction(reduce):
    """Asks a function how a layer is copied and pickled, before Keras.

    Args:
        reduce: Function from a layer to what `__reduce__` returns, or to `None`
            for what Keras does.
    """
    original = keras.layers.Layer.__reduce__

    @functools.wraps(original)
    def method(layer):
        return reduce(layer) or original(layer)

    keras.layers.Layer.__reduce__ = method


def to_archive(layer) -> bytes:
    """A layer in the `.keras` format, in which Keras pickles it."""
    file = io.BytesIO()
    keras.src.saving.saving_lib._save_model_to_fileobj(layer, file, "h5")
    return file.getvalue()


def from_archive(archive: bytes):
    """A layer from the `.keras` format, a model of it not compiled."""
    return keras.src.saving.saving_lib._load_model_from_fileobj(
        io.BytesIO(archive),
        custom_objects=None,
        compile=False,
        # As Keras unpickles: a pickle runs code anyway.
        safe_mode=False,
    )


def set_variable_path(variable, path):
    """Renames a variable, which a count within the process may have named."""
    variable._path = path


def order_variables(layer, ordered: list):
    """Has a layer list the variables that it owns in this order."""
    places = {id(variable): place for place, variable in enumerate(ordered)}
    for variables in (
        layer._trainable_variables,
        layer._non_trainable_variables,
    ):
        variables.sort(key=lambda v: places[id(v)])


def optimized_variables(optimizer) -> list:
    """The variables that an optimizer was built for, in order."""
    inner = getattr(optimizer, "inner_optimizer", None) or optimizer
    return inner._trainable_variables


def is_called_in_another_model(model):
    """Whether the graph of another functional model calls `model`."""
    return bool(model._inbound_nodes)


def strategy_scope(owner):
    """The scope of the `tf.distribute` strategy of a model or an optimizer.

    It is settled when either is made.
    """
    for name in ("_distribute_strategy", "_distribution_strategy"):
        strategy = getattr(owner, name, None)
        if strategy is not None:
            return strategy.scope()
    return contextlib.nullcontext()


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


def is_training(argument=None):
    """Whether the call that is going on is one of training.

    Args:
        argument: The `training` that the layer's `call` was given, if any.
            Where it says nothing, the call around it does.

    Returns:
        Boolean, or a tensor where a call is rematerialized on JAX and hands
        `training` on as one.
    """
    if isinstance(argument, bool):
        return argument
    state = keras.src.backend.common.global_state
    context = state.get_global_attribute("current_call_ctx")
    if context is not None and context.get_value("training") is not None:
        argument = context.get_value("training")
    if argument is None:
        return False
    return argument if keras.ops.is_tensor(argument) else bool(argument)


def recomputes_activation(layer):
    """Whether a `RematScope` wants the layer's activation rematerialized."""
    mode = layer._remat_mode
    return (
        mode is not None
        and mode.mode == "activations"
        and getattr(layer, "activation", None) is not None
    )


def inputs_struct(model):
    """The symbolic inputs of a functional model, nested as it takes them."""
    return model._inputs_struct


def accumulated_gradients(optimizer):
    """What an optimizer that accumulates gradients has accumulated."""
    return getattr(optimizer, "_accumulated_gradients", [])


def autocast(layer):
    """The scope in which Keras runs a layer's call under its dtype policy."""
    if not layer.autocast or layer.compute_dtype == layer.variable_dtype:
        return contextlib.nullcontext()
    return keras.src.backend.AutocastScope(layer.compute_dtype)


def einsum_kernel_scale(layer, scale):
    """An int8 `EinsumDense`'s scales in the layout of its kernel."""
    return layer._adjust_scale_for_dequant(scale)


def int4_block_size(layer):
    """How many inputs of an int4 layer share a scale, `None` if all do."""
    return layer._int4_block_size


def copy_mask(source, target):
    """Gives a tensor the mask that another one carries, if it does."""
    mask = keras.src.backend.get_keras_mask(source)
    if mask is not None:
        keras.src.backend.set_keras_mask(target, mask)


def global_generators():
    """The generators that Keras draws from past its own seeds.

    On PyTorch a `Dropout` without a seed draws from the device's global
    generator; on other backends there is no such thing.

    Returns:
        List of `torch.Generator`.
    """
    if keras.config.backend() != "torch":
        return []
    import torch

    device = keras.src.backend.torch.core.get_device()
    if not device.startswith("cuda"):
        return [torch.default_generator]
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def generator_state(generator):
    """The state of a generator, an array of bytes."""
    return generator.get_state().numpy()


def set_generator_state(generator, state):
    """Sets the state of a generator.

    Raises:
        ValueError: if it can't be one. The generator is then as it was.
    """
    import torch

    state = torch.from_numpy(state.copy())
    try:
        torch.Generator(device=generator.device).set_state(state)
    except RuntimeError as error:
        raise ValueError(f"it is no state of a generator ({error})") from None
    generator.set_state(state)
