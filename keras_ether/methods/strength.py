"""Methods with a fixed or learned strength.

The result is a `Method` made from a registered method, so calls, files and
merging need no special case.

With a learned strength, the trained variables are a method's weights divided by
a factor, the rate multiplier. Adam's step does not depend on the scale of the
gradient. So a learning rate `r` moves the weights as `multiplier * r` would
without the factor. Other layers train at `r`.
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
# The right rates were found at 5e-2 for 36 kernels (all-MiniLM-L6-v2) and at
# 1.2e-2 for 210 (SmolLM2-135M), see `benchmarks/RESULTS.md`: in a residual
# network the changes of all kernels add up.
KERNELS_AT_ONE = 1_800
# The rule for many kernels does not hold for two.
LARGEST = 100.0
# Adam's default in Keras, the rate that the multiplier is made for.
LEARNING_RATE = 1e-3


def rate_multiplier(kernels: int) -> float:
    """The rate multiplier for which Adam's default is the rate to try first.

    Args:
        kernels: Integer, how many kernels of a network have a learned strength.

    Returns:
        Float, inversely proportional to `kernels`, at most `LARGEST`.
    """
    return min(KERNELS_AT_ONE / kernels, LARGEST)


@functools.cache
def with_strength(
    method: Method, strength: float | str | None, multiplier: float = 1.0
) -> Method:
    """A method at the given strength.

    Args:
        method: A registered `Method`.
        strength: `None`, `"learned"`, or a number, as `AdapterConfig` checks.
        multiplier: Float, the rate multiplier of a learned strength. Defaults
            to 1.

    Returns:
        A `Method`: `method` itself if the strength is `None`.
    """
    if strength is None:
        return method
    if isinstance(strength, str):
        return _of_learned_strength(method, multiplier)
    return _of_fixed_strength(method, strength)


def _of_learned_strength(method: Method, multiplier: float) -> Method:
    """Blocks `I + s (block − I)`, with one trained `s` per block, initially 0.

    `s = tanh(multiplier t)`, so the distance of a block from the identity is at
    most that of the method's own block, 2 for ETHER and ETHER+ (sections
    3.2 and 3.3). The other weights are `multiplier` times the variables. If
    only the directions of the weights matter, that product is omitted.

    The gradient of `s` is zero if the block is the identity, and the block's
    gradient is zero if `s` is zero. So the initial block is not the identity.
    """

    def factors(*variables: Tensor) -> Factors:
        *weights, t = variables
        if not method.turns:
            weights = [multiplier * ops.cast(w, "float32") for w in weights]
        left, right = method.factors(*weights)
        s = ops.tanh(ops.cast(multiplier * t, "float32"))
        return left * s[..., None], right

    def start(blocks: int, width: int, rng: np.random.Generator) -> Arrays:
        start = method.random_start or method.start
        scale = np.float32(1.0 / multiplier)
        weights = [scale * weight for weight in start(blocks, width, rng)]
        return *weights, np.zeros((blocks, 1), "float32")

    def shapes(width: int) -> tuple[tuple[int, ...], ...]:
        return *method.shapes_of(width), (1,)

    return dataclasses.replace(
        method,
        name=f"{method.name}, strength={LEARNED}",
        factors=factors,
        weights=(*method.weights, "strength"),
        start=start,
        orthogonal=False,
        learning_rate=LEARNING_RATE
        if multiplier != 1.0
        else 5.0 * method.learning_rate,
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
