"""Layers of a head, with separate weights for each example of a bank's call.

Such a layer keeps its class. Its `call` first asks whether the examples of the
current call have their own weights, and otherwise computes as before.
"""

import functools
from collections.abc import Callable
from collections.abc import Collection
from typing import Any

import keras
from keras import ops
from keras import tree

from keras_ether.adapters import kinds
from keras_ether.adapters import per_example
from keras_ether.adapters import shadowing
from keras_ether.ops.each_example import matmul_each
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable

CALL = "call"


def check(layer: Layer, variables: dict[str, Variable]) -> None:
    """Raises a `ValueError` for a layer that `watch` can't serve.

    Args:
        layer: A Keras layer.
        variables: Dictionary from name to variable: those of this layer, and of
            layers in it, that each example has for itself.
    """
    reason = _refusal_reason(layer, variables)
    if reason:
        raise ValueError(
            f"Layer '{layer.path}' trains as a whole, and adapters can't each "
            f"have their own: {reason}."
        )


def watch(layer: Layer, variables: dict[str, Variable]) -> None:
    """Makes a layer ask at each call whether examples have their own weights.

    Args:
        layer: A Keras layer that `check` has passed.
        variables: See `check`.
    """
    names = {id(variable): name for name, variable in variables.items()}
    shadowing.shadow(layer, CALL, functools.partial(_call, layer, names))


def _call(
    layer: Layer,
    names: dict[int, str],
    call: Callable,
    *args: Any,
    **kwargs: Any,
) -> Any:
    examples = per_example.current()
    if examples is None:
        return call(*args, **kwargs)
    values = examples.weights_of(layer)
    if values is None:
        return call(*args, **kwargs)
    inputs = args[0] if args else next(iter(kwargs.values()))
    examples.check(layer, tree.flatten(inputs)[0])
    values = _cast(layer, values)
    if type(layer) is keras.layers.Dense:
        outputs = _dense(layer, values, inputs)
    else:
        outputs = _one_by_one(layer, names, values, args, kwargs)
    return examples.choose(
        layer,
        outputs,
        lambda base: _computed(layer, names, _cast(layer, base), args, kwargs),
    )


def _cast(layer: Layer, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the dtype that Keras would pass to the layer."""
    if not layer.autocast:
        return values
    return {
        name: ops.cast(value, layer.compute_dtype)
        if keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(value.dtype)
        )
        else value
        for name, value in values.items()
    }


def _dense(layer: Layer, values: dict[str, Tensor], x: Tensor) -> Tensor:
    values = {name.rpartition("/")[2]: v for name, v in values.items()}
    y = matmul_each(x, values["kernel"], values.get("bias"))
    return y if layer.activation is None else layer.activation(y)


def _one_by_one(
    layer: Layer,
    names: dict[int, str],
    values: dict[str, Tensor],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """The layer's own computation, once for each example, vectorized."""
    batch = ops.shape(next(iter(values.values())))[0]
    is_tensor = [ops.is_tensor(part) for part in tree.flatten((args, kwargs))]
    parts = tree.flatten((args, kwargs))
    tensors = [
        ops.reshape(part, (batch, -1, *part.shape[1:]))
        for part, mapped in zip(parts, is_tensor, strict=True)
        if mapped
    ]

    def compute(elements: tuple) -> Any:
        *tensors, own = elements
        left = iter(tensors)
        filled = [
            next(left) if mapped else part
            for part, mapped in zip(parts, is_tensor, strict=True)
        ]
        args_, kwargs_ = tree.pack_sequence_as((args, kwargs), filled)
        return _computed(layer, names, own, args_, kwargs_)

    outputs = ops.vectorized_map(compute, (*tensors, values))
    return tree.map_structure(
        lambda y: ops.reshape(y, (-1, *y.shape[2:])), outputs
    )


def _computed(
    layer: Layer,
    names: dict[int, str],
    values: dict[str, Tensor],
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """The layer's own computation with these weights."""
    tensors = {i: values[name] for i, name in names.items()}
    with per_example.computing_for(None):
        return _stand_in(layer, tensors).call(*args, **kwargs)


def _stand_in(layer: Layer, tensors: dict[int, Tensor]) -> Layer:
    """A copy of a layer that computes with tensors in place of variables.

    Args:
        layer: A Keras layer.
        tensors: Dictionary from the id of a variable to a tensor.
    """
    other = object.__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other.__dict__.pop(CALL, None)
    for name, value in _parts(layer):
        if isinstance(value, keras.Variable):
            other.__dict__[name] = tensors.get(id(value), value)
        elif _held(value, tensors):
            other.__dict__[name] = _stand_in(value, tensors)
    return other


def _held(layer: Layer, ids: Collection[int]) -> set[int]:
    """Those of the ids whose variables a stand-in of the layer replaces."""
    found: set[int] = set()
    for _, value in _parts(layer):
        if isinstance(value, keras.Variable):
            found |= {id(value)} & set(ids)
        else:
            found |= _held(value, ids)
    return found


def _parts(layer: Layer) -> list[tuple[str, Variable | Layer]]:
    """Variables and layers that are attributes of a layer."""
    return [
        (name, value)
        for name, value in vars(layer).items()
        if isinstance(value, keras.Variable | keras.layers.Layer)
    ]


def _refusal_reason(layer: Layer, variables: dict[str, Variable]) -> str | None:
    if kinds.is_adapted(layer):
        return (
            f"it has an adapter, and {sorted(variables)} train or move beside "
            "it. Set their `trainable` to False"
        )
    if layer.quantization_mode is not None:
        return f"it is quantized ('{layer.quantization_mode}')"
    fixed = [name for name, v in variables.items() if not v.trainable]
    if fixed:
        return (
            f"{sorted(fixed)} move without training, by statistics of all "
            "examples"
        )
    ids = {id(variable) for variable in variables.values()}
    if _held(layer, ids) != ids:
        return (
            f"not all of its weights {sorted(variables)} are attributes of "
            "the layer"
        )
    return None
