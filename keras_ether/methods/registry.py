"""The table of methods: trained weights, start and formula of each.

A method is one function from its weights to the factors of its blocks, one
function that gives the start, and one entry here. All methods share everything
else (the call, dropout, merging, distances, files).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_ether.ops import values

SIDES = ("input", "output", "both", "narrow", "single")
# The number of blocks that a method's learning rate is meant for.
FEW_BLOCKS = 4


@dataclass(frozen=True)
class Method:
    """A way to transform a kernel by trained block-diagonal matrices.

    Args:
        name: The name that `keras_ether.apply` takes.
        factors: Function from the method's weights, by name, to the factors
            `(left, right)` of its blocks, see `keras_ether.ops.reflections`.
            Each block's may depend on its own weights alone.
        weights: Names of the method's weights, the arguments of `factors`.
        start: Function from `(blocks, width, rng)` to the start of those
            weights, a tuple of float32 arrays whose first axis is `blocks`;
            `rng` is a `numpy.random.Generator`.
        side: The side that is transformed by default: `"input"`, `"output"`,
            `"both"`, `"narrow"` for the shorter of the two, or `"single"` for
            the input side, and the output side of a table, which has no other.
        orthogonal: Whether every block is orthogonal, so that its transpose
            inverts it.
        learning_rate: A learning rate for Adam that is a good first try with
            four blocks, see `learning_rate_for`.
        min_width: Integer, the width of the smallest block that can train. A
            unit vector of one entry is a constant. Defaults to 2.
        random_start: A start away from the identity, for a learned strength, if
            `start` gives the identity. Defaults to `None`.
        turns: Whether the weights are vectors of which only the direction
            counts. Defaults to `False`.
    """

    name: str
    factors: Callable
    weights: tuple[str, ...]
    start: Callable
    side: str
    orthogonal: bool
    learning_rate: float
    min_width: int = 2
    random_start: Callable | None = None
    turns: bool = False

    def learning_rate_for(self, rank_blocks: int) -> float:
        """A learning rate for Adam that is a good first try.

        A step turns a vector of `width` numbers, 0.58 long, by up to `rate *
        √width / 0.58`. So with fewer and wider blocks than four the same turn
        is that of a lower rate. It does not carry over to more blocks, nor is
        it so with a learned strength, which bears a wide band of rates: what
        was measured stands in `benchmarks/RESULTS.md`, under Blocks.

        Args:
            rank_blocks: Integer, the number of blocks of a kernel.

        Returns:
            Float, `learning_rate` with four blocks or more.
        """
        if not self.turns or rank_blocks >= FEW_BLOCKS:
            return self.learning_rate
        return self.learning_rate * math.sqrt(rank_blocks / FEW_BLOCKS)


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Adds a method to the table.

    Args:
        method: A `Method`. Its name must be new.

    Returns:
        The method.

    Raises:
        ValueError: if the name is taken, or a field is not as `Method`
            documents.
    """
    _check(method)
    if method.name in METHODS:
        raise ValueError(
            f"A method named '{method.name}' is registered already. "
            f"Registered methods: {sorted(METHODS)}."
        )
    METHODS[method.name] = method
    return method


def _check(method: Any) -> None:
    """Raises a `ValueError` for the first invalid field."""
    if not isinstance(method, Method):
        raise ValueError(
            "`method` must be a `keras_ether.methods.Method`. Received: "
            f"method={method!r} of type {type(method).__name__}"
        )
    weights, width = method.weights, values.integer(method.min_width)
    rate = values.real(method.learning_rate)
    for field, is_right, accepted in (
        ("name", isinstance(method.name, str) and method.name, "a string"),
        ("factors", callable(method.factors), "a function"),
        (
            "weights",
            isinstance(weights, tuple)
            and weights
            and all(isinstance(name, str) for name in weights)
            # The name of a learned strength.
            and "strength" not in weights,
            "a tuple of strings other than 'strength'",
        ),
        ("start", callable(method.start), "a function"),
        ("side", method.side in SIDES, f"one of {SIDES}"),
        ("orthogonal", isinstance(method.orthogonal, bool), "True or False"),
        ("learning_rate", rate and 0 < rate < math.inf, "a positive number"),
        ("min_width", width and width > 0, "a positive integer"),
        (
            "random_start",
            method.random_start is None or callable(method.random_start),
            "a function or None",
        ),
        ("turns", isinstance(method.turns, bool), "True or False"),
    ):
        if not is_right:
            raise ValueError(
                f"`{field}` of a method must be {accepted}. Received: "
                f"{field}={getattr(method, field)!r}"
            )


def starts_at_identity(method: Method) -> bool:
    """Whether the blocks of a method are the identity at their start."""
    rng = np.random.default_rng(0)
    weights = method.start(1, method.min_width, rng)
    left, right = method.factors(*map(ops.convert_to_tensor, weights))
    block = values.to_numpy(left)
    if right is not None:
        block = np.einsum("nkw,nkv->nwv", block, values.to_numpy(right))
    return not block.any()


@functools.cache
def are_thin_and_apart(method: Method) -> bool:
    """Whether each block has thin factors, made of its own weights alone."""
    rng = np.random.default_rng(0)
    try:
        weights = [
            # At the start, blocks that depend on each other may not show it.
            ops.convert_to_tensor(w + rng.standard_normal(w.shape, "float32"))
            for w in method.start(2, max(method.min_width, 2), rng)
        ]
        factors = method.factors(*weights)
        alone = [
            method.factors(*(w[i : i + 1] for w in weights)) for i in (0, 1)
        ]
    except Exception:  # A function of the user's may want other numbers.
        return False
    return factors[1] is not None and all(
        np.allclose(values.to_numpy(factor[i]), values.to_numpy(one[j][0]))
        for i, one in enumerate(alone)
        for j, factor in enumerate(factors)
    )


def get(name: str) -> Method:
    """Returns the method registered under `name`.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"`method` must be one of {sorted(METHODS)}. Received: "
            f"method={name!r}"
        )
    return METHODS[name]
