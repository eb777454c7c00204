"""The private names of Keras that this package needs.

Each is wrapped in one small function. In this order they concern layers,
optimizers, models and their files, calls, and single kernels, losses and masks.
Tested with Keras 3.15 on JAX, TensorFlow and PyTorch.
"""

import contextlib
import io
from typing import Any

import keras

from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Optimizer
from keras_ether.types import Tensor
from keras_ether.types import Variable


def children(layer: Layer) -> list[Layer]:
    """The direct sub-layers that Keras tracks in `layer`, in order."""
    return layer._flatten_layers(include_self=False, recursive=False)


def layers_in(layer: Layer) -> list:
    """A layer and all layers below it."""
    return layer._flatten_layers()


# The attribute that holds a layer's direct sub-layers. A layer that is being
# made may lack it.
SUBLAYERS = "_layers"


def add_sublayer(layer: Layer, name: str, sublayer: Layer) -> None:
    """Sets a sub-layer as an attribute of a layer, locked or not."""
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        setattr(layer, name, sublayer)
    finally:
        if locked:
            layer._tracker.lock()


def remove_sublayer(layer: Layer, name: str, sublayer: Layer) -> None:
    """Undoes `add_sublayer`, wherever it was interrupted."""
    layer._tracker.untrack(sublayer)
    if getattr(layer, name, None) is sublayer:
        delattr(layer, name)


def held_variables(layer: Layer) -> list[Variable]:
    """The variables that are attributes of `layer`, including shared ones."""
    return layer._trainable_variables + layer._non_trainable_variables


def variables_that_may_train(layer: Layer) -> list[Variable]:
    """The variables of `layer` that train as soon as it is trainable."""
    return layer._trainable_variables


def order_variables(layer: Layer, ordered: list) -> None:
    """Makes a layer list the variables that it owns in this order."""
    indices = {id(variable): index for index, variable in enumerate(ordered)}
    for variables in (
        layer._trainable_variables,
        layer._non_trainable_variables,
    ):
        variables.sort(key=lambda v: indices[id(v)])


def set_variable_path(variable: Variable, path: str) -> None:
    """Renames a variable, whose name may hold a process-wide count."""
    variable._path = path


# The attribute that holds a layer's own flag. Its property also sets
# sub-layers.
TRAINABLE = "_trainable"


def share_registered_names(known: type, other: type) -> None:
    """Registers the class `other` under the names of `known`."""
    for names in (
        keras.src.api_export.REGISTERED_OBJS_TO_NAMES,
        keras.src.saving.object_registration.GLOBAL_CUSTOM_NAMES,
    ):
        if known in names:
            names[other] = names[known]


class TorchParameters:
    """Shows a layer's current variables to PyTorch, as a change.

    On PyTorch a Keras layer lists its variables, and those of its sub-layers,
    when it is built. On other backends this does nothing.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.before: Any = getattr(layer, "_torch_params", None)

    def do(self) -> None:
        if self.before is not None:
            self.layer._track_variables()

    def undo(self) -> None:
        if self.before is not None:
            self.layer._torch_params = self.before


def tracker_attributes(owner: object) -> dict[str, Any]:
    """The attributes of the tracker of a layer or an optimizer."""
    tracker = getattr(owner, "_tracker", None)
    return {} if tracker is None else vars(tracker)


def unwrapped(value: Any) -> object:
    """The container behind a list or dictionary that TensorFlow has wrapped.

    TensorFlow wraps attributes of layers and optimizers. Its records of a list
    must agree with the list, and are returned too.
    """
    if isinstance(value, list) and hasattr(value, "_storage"):
        return vars(value)
    if isinstance(value, dict):
        return getattr(value, "__wrapped__", value)
    return value


def tracked_variables(optimizer: Optimizer) -> list[Variable]:
    """An optimizer's own variables, in the order of their creation."""
    return optimizer._variables


def trained_variables(optimizer: Optimizer) -> list[Variable]:
    """The variables that a built optimizer was built for."""
    return optimizer._trainable_variables


def update_count(optimizer: Optimizer) -> Variable:
    """The variable that counts an optimizer's updates.

    `iterations` divides it by the accumulation steps; a wrapper's `iterations`
    is that of the wrapped optimizer.
    """
    return optimizer._iterations


def rate_set(optimizer: Optimizer) -> Any:
    """The learning rate that an optimizer was given: a variable or schedule."""
    return optimizer._learning_rate


def optimizer_for(optimizer: Optimizer, variable: Variable) -> Any:
    """The optimizer that a `MultiOptimizer` has for a variable."""
    return optimizer._optimizer_map(variable)


def exclude_like(
    optimizer: Optimizer, variable: Variable, others: list[Variable]
) -> None:
    """Excludes a variable from weight decay if one of `others` is excluded."""
    excluded: set = getattr(optimizer, "_exclude_from_weight_decay", set())
    if any(optimizer._var_key(other) in excluded for other in others):
        excluded.add(optimizer._var_key(variable))


def set_unbuilt(optimizer: Optimizer, slots: set[int]) -> None:
    """Makes a built optimizer unbuilt.

    Keras has no inverse of `build`. Otherwise an optimizer for other variables
    would have to be made from a configuration, which not all optimizers have
    and which lacks later settings.

    Args:
        optimizer: A Keras optimizer.
        slots: Ids of its own variables that its attributes no longer hold.
    """
    optimizer._tracker.stored_ids["variables"] -= slots
    vars(optimizer)["_trainable_variables"] = []
    # Their keys are ids or names of variables.
    for name in (
        "_trainable_variables_indices",
        "_exclude_from_weight_decay_cache",
    ):
        cache: Any = unwrapped(getattr(optimizer, name, {}))
        dict.clear(cache)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        # `build` asks a function for new inner optimizers.
        chosen = optimizer._optimizer_map
        known = [*getattr(chosen, "values", list)()]
        known.append(getattr(chosen, "default_optimizer", None))
        optimizer._inner_optimizers[:] = [
            inner
            for inner in optimizer._inner_optimizers
            if any(inner is other for other in known)
        ]
    optimizer.built = False


def strategy_scope(owner: Any) -> contextlib.AbstractContextManager:
    """The scope of the `tf.distribute` strategy of a model or an optimizer.

    The strategy is fixed when either is made.
    """
    for name in ("_distribute_strategy", "_distribution_strategy"):
        strategy = getattr(owner, name, None)
        if strategy is not None:
            return strategy.scope()
    return contextlib.nullcontext()


# The attribute of a compiled model that says which of its layers trained when
# it was compiled.
COMPILED_TRAINABLE_STATE = "_compiled_trainable_state"


def trainable_state(model: Layer) -> dict[Layer, bool]:
    """The flags of a model and its layers, as Keras keeps them.

    If the recorded flags differ, `fit` warns that flags changed since
    `compile`.
    """
    return {layer: layer.trainable for layer in layers_in(model)}


def values_held(variables: list) -> list[tuple[Variable, Any]]:
    """Pairs of variable and value, where it has one now."""
    return [(v, v._value) for v in variables if v._value is not None]


def are_taken(variables: list) -> bool:
    """Whether a loop of JAX has taken the value of a variable."""
    return any(v._value is None for v in variables)


def are_lent(variables: list) -> bool:
    """Whether code outside of a step can't read variables that it took.

    A variable without a value that Keras has yet to initialize is not meant.
    """
    if keras.src.backend.in_stateless_scope():
        return False
    return any(v._value is None and v._initializer is None for v in variables)


# The attribute of a model with the values that a loop of JAX, which is running,
# writes back to the model's variables.
JAX_STATE = "_jax_state"


def jax_state(model: Model) -> dict[str, list]:
    """The current values of a model's variables, in the form of `JAX_STATE`."""
    # A model that is not compiled has no such attribute.
    optimizer = getattr(model, "optimizer", None)
    variables = {
        "trainable_variables": model.trainable_variables,
        "non_trainable_variables": model.non_trainable_variables,
        "optimizer_variables": optimizer.variables if optimizer else [],
        "metrics_variables": model.metrics_variables,
    }
    return {name: [v.value for v in own] for name, own in variables.items()}


def give_back(pairs: list[tuple[Variable, Any]]) -> None:
    """Restores the values of variables from which a loop of JAX took them.

    Args:
        pairs: See `values_held`.
    """
    for variable, value in pairs:
        if variable._value is None and not value.is_deleted():
            variable._value = value


def inputs_struct(model: Model) -> Any:
    """The symbolic inputs of a functional model, nested as it takes them."""
    return model._inputs_struct


def last_operations(model: Model) -> list:
    """The layers and operations whose outputs are those of a functional model.

    None of another model.
    """
    outputs = getattr(model, "outputs", None) or []
    return [tensor._keras_history.operation for tensor in outputs]


def variables_in_calls(model: Layer) -> list[tuple[str, Variable]]:
    """Variables that a functional model passes to its operations.

    Pairs of the operation's name and the variable.
    """
    return [
        (node.operation.name, argument)
        for nodes in getattr(model, "_nodes_by_depth", {}).values()
        for node in nodes
        for argument in node.arguments._flat_arguments
        if isinstance(argument, keras.Variable)
    ]


def to_archive(layer: Layer) -> bytes:
    """A layer in the `.keras` format, which Keras's pickles contain."""
    file = io.BytesIO()
    keras.src.saving.saving_lib._save_model_to_fileobj(layer, file, "h5")
    return file.getvalue()


def from_archive(archive: bytes) -> Layer:
    """A layer from the `.keras` format, without compiling it."""
    return keras.src.saving.saving_lib._load_model_from_fileobj(
        io.BytesIO(archive),
        custom_objects=None,
        compile=False,
        # As in Keras's own unpickling: a pickle runs code anyway.
        safe_mode=False,
    )


def is_training(argument: bool | Tensor | None = None) -> bool | Tensor:
    """Whether the current call is a training call.

    Args:
        argument: The `training` argument of the layer's `call`, if any. If it
            is `None`, the enclosing call's value counts.

    Returns:
        Boolean, or a tensor in a call rematerialized on JAX, which passes
        `training` as one.
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


def autocast(layer: Layer) -> contextlib.AbstractContextManager:
    """The scope in which Keras runs a layer's call under its dtype policy."""
    if not layer.autocast or layer.compute_dtype == layer.variable_dtype:
        return contextlib.nullcontext()
    return keras.src.backend.AutocastScope(layer.compute_dtype)


def recomputes_activation(layer: Layer) -> bool:
    """Whether a `RematScope` rematerializes the layer's activation."""
    mode = layer._remat_mode
    return (
        mode is not None
        and mode.mode == "activations"
        and getattr(layer, "activation", None) is not None
    )


def is_rematerialized(layer: Layer) -> bool:
    """Whether a layer was made in a `RematScope`, and may run again."""
    return getattr(layer, "_remat_mode", None) is not None


def einsum_kernel_scale(layer: Layer, scale: Tensor) -> Tensor:
    """An int8 `EinsumDense`'s scales in the layout of its kernel."""
    return layer._adjust_scale_for_dequant(scale)


def int4_block_size(layer: Layer) -> int | None:
    """The number of inputs per scale of an int4 layer, `None` for all."""
    return layer._int4_block_size


def mask_of(tensor: Any) -> Any:
    """The mask that Keras has attached to a tensor, or `None`."""
    return keras.src.backend.get_keras_mask(tensor)


def copy_mask(source: Any, target: Any) -> None:
    """Copies the mask of one tensor to another, if there is one."""
    mask = mask_of(source)
    if mask is not None:
        keras.src.backend.set_keras_mask(target, mask)


def logits_of(tensor: Any) -> Any:
    """The logits of which Keras computed these probabilities, or `None`.

    On TensorFlow its losses and metrics compute with logits in place of a
    softmax's or sigmoid's outputs, which are rounded to 0 or 1.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    return getattr(tensor, "_keras_logits", None)


def set_logits(tensor: Any, logits: Any) -> None:
    """Attaches logits to probabilities, see `logits_of`."""
    tensor._keras_logits = logits


def loss_of(identifier: Any) -> keras.losses.Loss:
    """The loss that `compile` makes of a name, a function or a loss."""
    loss = keras.losses.get(identifier)
    if isinstance(loss, keras.losses.Loss):
        return loss
    name = identifier if isinstance(identifier, str) else loss.__name__
    return keras.src.losses.losses.LossFunctionWrapper(loss, name=name)


def torch_device() -> str:
    """The device on which Keras places new tensors of PyTorch."""
    return keras.src.backend.torch.core.get_device()
