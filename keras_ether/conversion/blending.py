"""Weighted sums of adapters over one base."""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_ether.adapters import changes
from keras_ether.adapters import kinds
from keras_ether.adapters import quantized_kernel
from keras_ether.ops import values
from keras_ether.ops.backend import at_least_float32
from keras_ether.ops.traced import compiled
from keras_ether.ops.traced import no_gradient
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_file
from keras_ether.saving import loading
from keras_ether.saving import save_and_load
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable


def blend(model: Layer, weights: Mapping, check_base: bool = True) -> Layer:
    """Adds a weighted sum of adapters to a base model, in place.

    Each kernel becomes `W + Σ weight (H W G − W)`. Each other trained weight
    becomes `w + Σ weight (w' − w)`, where `w` is the model's value. If the
    weights add up to 1, a new, random head in `model` becomes the weighted mean
    of the files' heads. One file at weight 1 gives the same model as
    `keras_ether.load_adapter` and `keras_ether.merge`.

    Args:
        model: A built Keras model or layer, the base, without adapters.
        weights: Dictionary from adapter file, a string or `PathLike`, to
            weight, any finite number. The files may differ in method, blocks
            and layers.
        check_base: Whether the model must be the base that the adapters were
            trained over. With `False` another base only gives a warning.
            Defaults to `True`.

    Returns:
        The model passed, an ordinary model.

    Raises:
        ValueError: if there is no file, if a weight is not a finite number, if
            the model has adapters, if a file is damaged or does not fit, or if
            a kernel is quantized. An error leaves the model unchanged.

    Example:

    >>> keras_ether.save_adapter(model, "a.ether.safetensors")
    >>> keras_ether.save_adapter(model, "b.ether.safetensors")
    >>> model = keras_ether.remove(model)
    >>> model = keras_ether.blend(
    ...     model, {"a.ether.safetensors": 0.7, "b.ether.safetensors": 0.3}
    ... )
    """
    fills = [
        (_fill(model, filepath, check_base), weight)
        for filepath, weight in _checked(weights).items()
    ]
    kernels: dict = {}
    others: dict = {}
    for fill, weight in fills:
        for path, adapter in fill.adapters.items():
            layer = fill.tree.layers[path]
            terms = kernels.setdefault(path, (layer, []))[1]
            terms.append((weight, adapter))
        for variable, value in fill.assignments:
            terms = others.setdefault(id(variable), (variable, []))[1]
            terms.append((weight, value))
    for path, (layer, _) in kernels.items():
        if layer.quantization_mode in quantized_kernel.CODES:
            raise ValueError(
                f"The kernel of layer '{path}' is quantized to "
                f"{layer.quantization_mode}, so adapters can't be blended into "
                "it. Blend before quantizing."
            )
    sums = [_weight_sum(variable, terms) for variable, terms in others.values()]
    with changes.all_or_none() as made:
        for layer, terms in kernels.values():
            kernel = getattr(layer, kinds.known_kind(layer).kernel)
            made.assign(kernel, functools.partial(_kernel_sum, kernel, terms))
        for (variable, _), value in zip(others.values(), sums, strict=True):
            made.assign(variable, value)
    return model


def _checked(weights: Any) -> dict:
    """The weights as plain numbers, by file.

    Raises:
        ValueError: if they are not a dictionary to finite numbers.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(
            "`weights` must be a dictionary from adapter file to weight. "
            f"Received: weights={weights!r}"
        )
    numbers = {path: values.finite(w) for path, w in weights.items()}
    for filepath, number in numbers.items():
        if number is None:
            raise ValueError(
                f"The weight of '{filepath}' must be a finite number. "
                f"Received: {weights[filepath]!r}"
            )
    return numbers


def _fill(
    model: Layer, filepath: str | os.PathLike, check_base: bool
) -> loading.Fill:
    content = adapter_file.read(filepath)
    fill = save_and_load.prepare(model, content, filepath, check_base)
    if fill.plan is None:
        raise ValueError(
            f"Model '{model.name}' has adapters, but `blend` needs a base "
            "without adapters. Call `keras_ether.merge` or "
            "`keras_ether.remove` first."
        )
    return fill


def _kernel_sum(kernel: Tensor, terms: list) -> Tensor:
    with no_gradient():
        base = at_least_float32(ops.convert_to_tensor(kernel))
        # As few arrays of the kernel's size as possible are in memory.
        total = 0.0
        for weight, adapter in terms:
            if weight:
                total = _add(total, weight, adapter.fold_trained(base))
        rest = 1.0 - math.fsum(weight for weight, _ in terms)
        if rest:
            total = _add(total, rest, base)
        return ops.cast(total, kernel.dtype)


@compiled
def _add(total: Tensor | float, weight: float, kernel: Tensor) -> Tensor:
    return total + weight * kernel


def _weight_sum(variable: Variable, terms: list) -> np.ndarray:
    value = to_numpy(variable)
    if "float" not in variable.dtype:
        if any(not np.array_equal(terms[0][1], other) for _, other in terms):
            raise ValueError(
                f"The files differ in '{variable.path}', which holds integers "
                "and can't be blended."
            )
        return terms[0][1]
    total = base = value.astype(np.result_type(value.dtype, "float32"))
    for weight, other in terms:
        if weight:
            total = total + weight * (other.astype(base.dtype) - base)
    return total.astype(value.dtype)
