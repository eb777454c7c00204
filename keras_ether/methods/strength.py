"""A method at another strength.

It is a `Method` like any other, made of a registered one, so that calls,
files, merging and all else treat it alike.
"""

import dataclasses
import functools

import numpy as np
from keras import ops

from keras_ether.methods.registry import Method
from keras_ether.types import Arrays
from keras_ether.types import Factors
from keras_ether.types import Tensor

LEARNED = "learned"


@functools.cache
def with_strength(method: Method, strength: float | str | None) -> Method:
    """A method at the given strength.

    Args:
        method: A registered `Method`.
        strength: `None`, `"learned"`, or a number, as `AdapterConfig` checks.

    Returns:
        A `Method`, `method` itself where nothing differs.
    """
    if strength is None:
        return method
    if isinstance(strength, str):
        return _of_learned_strength(method)
    return _of_fixed_strength(method, strength)


def bounded(weight: Tensor) -> Tensor:
    """The strength of a trained weight, within ±1 whatever is learned.

    The distance of a block from the identity is thus at most that of the
    method's own block, 2 for ETHER and ETHER+ (sections 3.2 and 3.3).

    Args:
        weight: Tensor of any shape.

    Returns:
        Float32 tensor of the same shape, 0 at 0 with slope 1.
    """
    return ops.tanh(ops.cast(weight, "float32"))


def _of_learned_strength(method: Method) -> Method:
    """Blocks `I + s (block − I)`, with one trained `s` a block, 0 at first.

    Its gradient is zero where the block is the identity, and so is the block's
    where `s` is zero. So the other weights start away from the identity.
    """

    def factors(*weights: Tensor) -> Factors:
        left, right = method.factors(*weights[:-1])
        return left * bounded(weights[-1])[..., None], right

    def start(blocks: int, width: int, rng: np.random.Generator) -> Arrays:
        start = method.random_start or method.start
        return *start(blocks, width, rng), np.zeros((blocks, 1), "float32")

    def shapes(width: int) -> tuple[tuple[int, ...], ...]:
        return *method.shapes_of(width), (1,)

    return dataclasses.replace(
        method,
        name=f"{method.name}, strength={LEARNED}",
        factors=factors,
        weights=(*method.weights, "strength"),
        start=start,
        orthogonal=False,
        learning_rate=5.0 * method.learning_rate,
        turns=False,
        shapes=shapes,
        starts_at_identity=True,
        identity_at_zero=True,
    )


def _of_fixed_strength(method: Method, strength: float) -> Method:
    """Blocks `I + strength (block − I)`."""

    def factors(*weights: Tensor) -> Factors:
        left, right = method.factors(*weights)
        return left * strength, right

    return dataclasses.replace(
        method,
        name=f"{method.name}, strength={strength:g}",
        factors=factors,
        orthogonal=method.orthogonal and strength == 1.0,
    )
