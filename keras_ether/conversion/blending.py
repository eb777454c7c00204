"""Weighted sums of adapters over one base."""

import functools
import math
import os
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_ether.adapters import changes
from keras_ether.adapters import kinds
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter import Adapter
from keras_ether.ops import values
from keras_ether.ops.backend import at_least_float32
from keras_ether.ops.traced import compiled
from keras_ether.ops.traced import no_gradient
from keras_ether.saving import adapter_file
from keras_ether.saving import loading
from keras_ether.saving import save_and_load
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable


def blend(model: Layer, weights: Mapping, check_base: bool = True) -> Layer:
    """Adds a weighted sum of adapters to a base model, in place.

    Each kernel becomes `W + Σ weight (H W G − W)`. Each other trained weight
    becomes `w + Σ weight (w' − w)`, where `w` is the model's value. A kernel
    that a file holds too, since it was trained itself, becomes
    `W + Σ weight (H W' G − W)`. If the weights add up to 1, a new, random head
    in `model` becomes the weighted mean of the files' heads. One file at weight
    1 gives the same model as `keras_ether.load_adapter` and
    `keras_ether.merge`.

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
    sums: dict[int, list[_Term]] = {}
    for fill, weight in fills:
        for key, term in _terms(fill, weight).items():
            sums.setdefault(key, []).append(term)
    for terms in sums.values():
        _check_integers(terms)
    with changes.all_or_none() as made:
        for terms in sums.values():
            made.assign(terms[0].variable, functools.partial(_sum, terms))
    return model


class _Term(NamedTuple):
    """A variable in one file: the file's value, transformed by its adapter.

    Without a value the file has the model's.
    """

    variable: Variable
    weight: float
    value: Any
    adapter: Adapter | None


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


def _terms(fill: loading.Fill, weight: float) -> dict[int, _Term]:
    """What a file changes, by the ids of the variables."""
    terms = {
        id(variable): _Term(variable, weight, value, None)
        for variable, value in fill.assignments
    }
    for path, adapter in fill.adapters.items():
        layer = fill.tree.layers[path]
        if layer.quantization_mode in quantized_kernel.CODES:
            raise ValueError(
                f"The kernel of layer '{path}' is quantized to "
                f"{layer.quantization_mode}, so adapters can't be blended into "
                "it. Blend before quantizing."
            )
        kernel = getattr(layer, kinds.known_kind(layer).kernel)
        known = terms.get(id(kernel))
        value = None if known is None else known.value
        terms[id(kernel)] = _Term(kernel, weight, value, adapter)
    return terms


def _check_integers(terms: list[_Term]) -> None:
    """Raises a `ValueError` for integers that differ between files."""
    variable, value = terms[0].variable, terms[0].value
    if "float" not in variable.dtype and any(
        not np.array_equal(value, term.value) for term in terms
    ):
        raise ValueError(
            f"The files differ in '{variable.path}', which holds integers "
            "and can't be blended."
        )


def _sum(terms: list[_Term]) -> Any:
    variable = terms[0].variable
    if "float" not in variable.dtype:
        return terms[0].value
    with no_gradient():
        base = at_least_float32(ops.convert_to_tensor(variable))
        # As few arrays of the kernel's size as possible are in memory.
        total: Any = 0.0
        for term in terms:
            if term.weight:
                total = _add(total, term.weight, _tuned(term, base))
        rest = 1.0 - math.fsum(term.weight for term in terms)
        if rest:
            total = _add(total, rest, base)
        return ops.cast(total, variable.dtype)


def _tuned(term: _Term, base: Tensor) -> Tensor:
    """What a variable is after `load_adapter` and `merge`."""
    value = base
    if term.value is not None:
        value = at_least_float32(ops.convert_to_tensor(term.value))
    if term.adapter is None:
        return value
    return term.adapter.fold_trained(value)


@compiled
def _add(total: Tensor | float, weight: float, value: Tensor) -> Tensor:
    return total + weight * value
