"""Copies of adapted models, by `keras_ether.copy`, `copy` and `pickle`.

Keras copies a layer by its `.keras` format, in which an adapted model is the
plain model with the fine-tuned kernels. A copy in memory is an adapted model.
It is made from that format, then gets its adapters, and then the value and flag
of every variable.

The values are stored in addition to those of the format, which Keras's own
layers may round or merge with LoRA. So a pickle is about twice as large as the
model.

As with any Keras layer, `copy.copy` is as deep as `copy.deepcopy`.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import reduction
from keras_ether.adapters import twin_class
from keras_ether.adapters import weights_file
from keras_ether.adapters.adapter import Adapter
from keras_ether.ops.values import to_numpy
from keras_ether.saving.compiled import Compiled
from keras_ether.surgery import insertion
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.outer_layers import layers_containing
from keras_ether.surgery.planning import Target
from keras_ether.types import Layer
from keras_ether.types import Variable

# Keras's warnings about state that is restored later.
EXPECTED = (
    "Skipping variable loading for optimizer",
    r"`compile\(\)` was not called as part of model loading",
)


def copy(model: Layer) -> Layer:
    """A copy of a model with its adapters, head, flags and optimizer.

    Python's `copy.deepcopy` and `pickle` give the same copy for a model that
    was passed to `keras_ether.apply` or `keras_ether.load_adapter`, and for
    models that contained it then. A model of another class that contains
    adapted layers is copied as by Keras: its copy is the plain model with the
    fine-tuned kernels. This function copies all of them with their adapters.

    A pickle has only the name of a method. So a model can't be pickled if you
    registered another method of that name since.

    Args:
        model: A Keras model or layer.

    Returns:
        The copy.

    Raises:
        ValueError: if `model` is not a Keras model or layer, if Keras makes
            another model from its configuration, or within
            `keras_ether.disabled`. Pickling is an error too if another method
            was registered under the name of the model's, since a pickle has
            only the name.

    Example:

    >>> twin = keras_ether.copy(model)
    >>> base = keras_ether.remove(twin)
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`model` must be a Keras model or layer. Received: "
            f"model={model!r} of type {type(model).__name__}"
        )
    rebuild, arguments = _reduce(model) or model.__reduce__()
    return rebuild(*arguments)


@dataclass(frozen=True)
class _LayerState:
    """The variables and flags of one layer.

    Attributes:
        variables: Description, path and value of each variable that it owns.
        trainable: Its flag.
        flags: The flags of the variables.
        before: Its flag and those of the variables from before it was frozen,
            or `None`.
        kept_trainable: Whether it is kept trainable.
        start: The weights that it had when it was first kept trainable.
        guarded: Whether it refuses unsupported calls.
    """

    variables: list
    trainable: bool
    flags: list[bool]
    before: tuple[bool, list[bool]] | None
    kept_trainable: bool
    start: tuple[np.ndarray, ...] | None
    guarded: bool

    @classmethod
    def of(cls, layer: Layer) -> "_LayerState":
        own = freezing.own_variables(layer)
        return cls(
            [(_described(v), v.path, to_numpy(v)) for v in own],
            layer.trainable,
            [v.trainable for v in own],
            freezing.flags_before(layer),
            freezing.is_kept_trainable(layer),
            freezing.start_of(layer),
            changes.held(layer, insertion.GUARDED) is not None,
        )


class _WithMethods:
    """The methods of a copy's adapters, by path.

    They may have been replaced in the table of methods. A pickle has only their
    names. It never changes, so `deepcopy` need not copy it too.
    """

    def __init__(self, adapters: dict[str, Adapter]) -> None:
        self.methods = {
            path: (adapter.config, adapter.method)
            for path, adapter in adapters.items()
        }

    def set_method(self, path: str, adapter: Adapter) -> None:
        """Gives an adapter of the copy the original's method."""
        # An unpickled state has none.
        known = vars(self).get("methods")
        if known is not None:
            _, adapter.method = known[path]

    def __getstate__(self) -> dict[str, Any]:
        for path, (config, method) in self.methods.items():
            if config.variant != method:
                raise ValueError(
                    f"The adapter of layer '{path}' can't be pickled: a pickle "
                    "has only the name of its method, and another method was "
                    "registered under that name since. Register the method of "
                    f"the model again. Received: method={config.method!r}"
                )
        return {n: v for n, v in vars(self).items() if n != "methods"}

    def __deepcopy__(self, memo: dict) -> Any:
        return self


class State(_WithMethods):
    """Everything that makes a copy of a layer with adapters."""

    def __init__(self, layer: Layer) -> None:
        layers = LayerTree(layer).by_path
        _check_active(layers)
        self.name = layer.name
        with weights_file.saving_base():
            self.archive = internals.to_archive(layer)
        self.adapters = {
            path: (part.ether.config, part.ether.seed)
            for path, part in layers.items()
            if _is_adapted(part)
        }
        super().__init__({path: layers[path].ether for path in self.adapters})
        self.twins = [p for p in self.adapters if twin_class.is_twin(layers[p])]
        self.layers = {p: _LayerState.of(part) for p, part in layers.items()}
        indices = {id(v): i for i, v in enumerate(_in_order(layers))}
        self.compiled = {
            path: Compiled(part, indices)
            for path, part in layers.items()
            if getattr(part, "compiled", False)
        }


class AdapterState(_WithMethods):
    """Everything that makes a copy of an adapter alone."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__({adapter.name: adapter})
        self.config, self.seed = adapter.config, adapter.seed
        self.built = (adapter.view, adapter.kernel_shape)
        self.layers = {"": _LayerState.of(adapter)}
        self.name = adapter.name


# Its name in earlier pickles of compiled models.
_Compiled = Compiled


def _reduce(layer: Layer) -> tuple | None:
    """The result of `__reduce__` of a layer, `None` if it has no adapter."""
    if kinds.is_adapter(layer):
        if not layer.built:
            return None
        return _rebuild_adapter, (AdapterState(layer),)
    if any(
        kinds.is_adapter(part) and part.built
        for part in internals.layers_in(layer)
    ):
        return _rebuild, (State(layer),)
    return None


reduction.set_reducer(_reduce)


def _rebuild(state: State) -> Layer:
    """Makes the copy.

    Raises:
        ValueError: if Keras makes another model from the same configuration.
    """
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        try:
            copy = internals.from_archive(state.archive)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"'{state.name}' can't be copied: Keras can't make it from its "
                f"own configuration. {error}"
            ) from error
    layers = LayerTree(copy).by_path
    adapters = {}
    for path in state.twins:
        if path not in layers or not kinds.kind_of(layers[path]):
            raise _other(state.name, f"it has no layer '{path}'")
        config, seed = state.adapters[path]
        target = Target.of(path, layers[path], config)
        adapter = Adapter(config, seed)
        state.set_method(path, adapter)
        adapters[path] = insertion.built(target, adapter)
    with changes.all_or_none() as made:
        _put_in(made, state, layers, adapters)
    layers = LayerTree(copy).by_path
    _fill(state.name, state.layers, layers)
    for path, (_, seed) in state.adapters.items():
        layers[path].ether.seed = seed
        # That of a layer that Keras has made.
        state.set_method(path, layers[path].ether)
    parts = list(layers.values())
    for part in parts + layers_containing(parts):
        internals.TorchParameters(part).do()
    variables = _in_order(layers)
    for path, compiled in state.compiled.items():
        compiled.compile(layers[path], variables)
    return copy


def _put_in(
    made: changes.Transaction,
    state: State,
    layers: dict[str, Layer],
    adapters: dict[str, Adapter],
) -> None:
    """Makes the changes that the original's owners hold."""
    owner = changes.Owner()
    root = layers.get("", next(iter(layers.values())))
    for path, adapter in adapters.items():
        insertion.adapt(made, layers[path], adapter, owner)
    for path, layer in layers.items():
        known = state.layers.get(path)
        if known is None:
            continue
        if known.before is not None:
            freezing.freeze_since(made, layer, owner, known.before)
        if known.kept_trainable:
            freezing.keep_trainable(made, layer, owner, known.start)
        if known.guarded:
            insertion.guard(made, layer, root, owner)
        reduction.register_class(layer)


def _rebuild_adapter(state: AdapterState) -> Adapter:
    adapter = Adapter(state.config, state.seed, name=state.name)
    state.set_method(state.name, adapter)
    adapter.build(*state.built)
    _fill(state.name, state.layers, {"": adapter})
    internals.TorchParameters(adapter).do()
    return adapter


def _fill(
    name: str, states: dict[str, _LayerState], layers: dict[str, Layer]
) -> None:
    """Sets the values and flags of layers, if their variables agree."""
    if layers.keys() != states.keys():
        paths = sorted(layers.keys() ^ states.keys())
        raise _other(name, f"only one of them has the layers {paths}")
    for path, layer in layers.items():
        expected = [described for described, *_ in states[path].variables]
        if not _put_in_order(layer, expected):
            received = [_described(v) for v in freezing.own_variables(layer)]
            raise _other(
                name,
                f"layer '{path}' has variables {received}, not {expected}",
            )
    for path, layer in layers.items():
        known = states[path]
        own = freezing.own_variables(layer)
        for variable, (_, full_name, value) in zip(
            own, known.variables, strict=True
        ):
            variable.assign(value)
            internals.set_variable_path(variable, full_name)
        freezing.set_flags(layer, known.trainable, known.flags)


def _put_in_order(layer: Layer, expected: list) -> bool:
    """Makes a layer list its variables in this order, if it has them.

    A float8 layer lists its kernel first if it was quantized after it was
    built, and last if it was made in float8. PyTorch pairs parameters by their
    order.
    """
    own = freezing.own_variables(layer)
    received = [_described(variable) for variable in own]
    if received == expected:
        return True
    ordered = []
    for described in expected:
        if described not in received:
            return False
        index = received.index(described)
        received.pop(index)
        ordered.append(own.pop(index))
    if own:
        return False
    internals.order_variables(layer, ordered)
    return ordered == freezing.own_variables(layer)


def _check_active(layers: dict[str, Layer]) -> None:
    for path, layer in layers.items():
        if _is_adapted(layer) and layer.ether.is_held_at_zero:
            raise ValueError(
                "A model can't be copied within `keras_ether.disabled`: the "
                f"adapter of layer '{path}' would stay disabled. Copy the "
                "model before that block. "
                "`keras_ether.remove(keras_ether.copy(model))` is its base "
                "model."
            )


def _is_adapted(layer: Layer) -> bool:
    return kinds.is_adapted(layer) and layer.ether.built


def _described(variable: Variable) -> tuple:
    """Name (without a count within the process), shape and dtype."""
    name = re.sub(r"(_\d+)?$", "", variable.name)
    return name, tuple(variable.shape), variable.dtype


def _in_order(layers: dict[str, Layer]) -> list[Variable]:
    return [v for y in layers.values() for v in freezing.own_variables(y)]


def _other(name: str, what: str) -> ValueError:
    return ValueError(
        f"'{name}' can't be copied: from its configuration Keras makes "
        f"another one, {what}. See that `get_config`, `build` and "
        "`get_build_config` restore every layer and variable."
    )
