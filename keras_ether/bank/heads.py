"""Layers of a head, with separate weights for each example of a bank's call.

This module has the product with a weight for each example, for each class that
a head may have. The layers keep their classes. While a bank is open, a layer's
`call` uses the examples' own weights if the current call has them, and
otherwise computes as before.
"""

import string
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_ether.adapters import kinds
from keras_ether.adapters import per_example
from keras_ether.ops.backend import reshape
from keras_ether.ops.each_example import matmul_each
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable

CALL = "call"


def _dense(layer: Layer, x: Tensor, own: dict[str, Tensor]) -> Tensor:
    y = matmul_each(x, own["kernel"], own.get("bias"))
    return y if layer.activation is None else layer.activation(y)


def _einsum(layer: Layer, x: Tensor, own: dict[str, Tensor]) -> Tensor:
    terms, _, outputs = layer.equation.partition("->")
    inputs, kernel = terms.split(",")
    free = iter(sorted(set(string.ascii_letters) - set(layer.equation)))
    if "..." in inputs:
        left_out = len(x.shape) - len(inputs.replace("...", ""))
        letters = "".join(next(free) for _ in range(left_out))
        inputs = inputs.replace("...", letters)
        outputs = outputs.replace("...", letters)
    example, repeat = inputs[0], next(free)
    if example in kernel or outputs[0] != example:
        raise per_example.NoExamplesError(
            f"In equation '{layer.equation}' of layer '{layer.path}' the batch "
            "is not the first axis, which each example's own head needs."
        )
    batch = ops.shape(own["kernel"])[0]
    y = ops.einsum(
        f"{example}{repeat}{inputs[1:]},{example}{kernel}"
        f"->{example}{repeat}{outputs[1:]}",
        _split_repeats(x, batch),
        own["kernel"],
    )
    if "bias" in own:
        y = y + _aligned(own["bias"], y)
    y = _merge_repeats(y, x)
    return y if layer.activation is None else layer.activation(y)


def _normalization(layer: Layer, x: Tensor, own: dict[str, Tensor]) -> Tensor:
    batch = ops.shape(next(iter(own.values())))[0]
    _, names = PRODUCTS[type(layer)]
    # The scale, and the shift if there is one.
    neutral = dict(zip(names, (ops.ones, ops.zeros), strict=False))
    plain = _stand_in(
        layer,
        {
            name: neutral[name](value.shape[1:], value.dtype)
            for name, value in own.items()
        },
    )
    y = _split_repeats(plain.call(x), batch)
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    rank = len(x.shape)
    # The batch, its repeats, then the axes of one example.
    places = {axis % rank + 1 for axis in axes}
    sizes = [y.shape[i] if i in places else 1 for i in range(2, rank + 1)]
    for name, operation in zip(names, (ops.multiply, ops.add), strict=False):
        if name in own:
            values = ops.cast(own[name], y.dtype)
            y = operation(y, ops.reshape(values, (-1, 1, *sizes)))
    return _merge_repeats(y, x)


# The product of each class, and the names of the weights that it knows.
PRODUCTS: dict[type, tuple[Callable, tuple[str, ...]]] = {
    keras.layers.Dense: (_dense, ("kernel", "bias")),
    keras.layers.EinsumDense: (_einsum, ("kernel", "bias")),
    keras.layers.LayerNormalization: (_normalization, ("gamma", "beta")),
    keras.layers.RMSNormalization: (_normalization, ("scale",)),
}


def check(path: str, layer: Layer, variables: dict[str, Variable]) -> None:
    """Raises a `ValueError` for weights that examples can't have separately.

    They are a layer's own weights that train or change, by name.
    """
    reason = _refusal_reason(layer, variables)
    if reason:
        raise ValueError(
            f"Adapters can't each have their own weights {sorted(variables)} "
            f"of layer '{path}': {reason}. Set its `trainable` to False before "
            "`keras_ether.apply`, or merge each adapter into a separate model."
        )


def is_as_it_was(layer: Layer, variables: list[Variable]) -> bool:
    """Whether a checked layer still computes with these variables."""
    return (
        type(layer) in PRODUCTS
        and layer.quantization_mode is None
        and {id(v) for v in variables} == {id(v) for v in layer.variables}
    )


def call(layer: Layer, original: Callable, *args: Any, **kwargs: Any) -> Any:
    """A layer's `call`, with each example's own weights if it has some."""
    examples = per_example.current(layer)
    values = None if examples is None else examples.weights_of(layer)
    if examples is None or values is None:
        return original(*args, **kwargs)
    # The inputs: other arguments don't change the outputs of these classes.
    x = args[0] if args else next(iter(kwargs.values()))
    x = examples.check(layer, x)
    product, _ = PRODUCTS[type(layer)]
    each = product(layer, x, _cast(layer, values))
    return examples.choose(
        layer,
        each,
        lambda base: _stand_in(layer, _cast(layer, base)).call(x),
    )


def _split_repeats(x: Tensor, batch: Any) -> Tensor:
    """`(r * batch, ...)` as `(batch, r, ...)`."""
    shape = ops.shape(x)
    return reshape(x, (batch, shape[0] // batch, *shape[1:]))


def _merge_repeats(y: Tensor, like: Tensor) -> Tensor:
    """Undoes `_split_repeats`."""
    return reshape(y, (ops.shape(like)[0], *ops.shape(y)[2:]))


def _aligned(values: Tensor, y: Tensor) -> Tensor:
    """Values of each example, along the last axes of `(batch, r, ...)`."""
    ones = (1,) * (len(y.shape) - len(values.shape))
    return reshape(values, (-1, *ones, *values.shape[1:]))


def _cast(layer: Layer, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the dtype that Keras would pass on."""
    if not layer.autocast:
        return values
    return {
        name: ops.cast(value, layer.compute_dtype)
        for name, value in values.items()
    }


def _stand_in(layer: Layer, own: dict[str, Tensor]) -> Layer:
    """A copy of a layer that computes with tensors in place of its weights."""
    other = object.__new__(type(layer))
    other.__dict__.update(layer.__dict__)
    other.__dict__.pop(CALL, None)
    for attribute, value in vars(layer).items():
        if isinstance(value, keras.Variable) and value.name in own:
            other.__dict__[attribute] = own[value.name]
    return other


def _refusal_reason(layer: Layer, variables: dict[str, Variable]) -> str | None:
    if kinds.is_adapted(layer):
        return "the layer has an adapter too"
    if type(layer) not in PRODUCTS:
        known = sorted(c.__name__ for c in PRODUCTS)
        return (
            f"it is a {type(layer).__name__}, and products with weights of "
            f"each example exist only for {known}"
        )
    if layer.quantization_mode is not None:
        return f"it is quantized ('{layer.quantization_mode}')"
    _, names = PRODUCTS[type(layer)]
    held = {
        id(value): value.name
        for value in vars(layer).values()
        if isinstance(value, keras.Variable)
    }
    for name, variable in variables.items():
        if name not in names or held.get(id(variable)) != name:
            return f"a bank knows only {sorted(names)} of this class"
        if not variable.trainable:
            return f"'{name}' does not train, though its layer does"
    if len(variables) != len(layer.variables):
        return "only some of its weights train"
    return None
