"""The table of methods: trained weights, initial values and formula of each.

A method is a function from its weights to the factors of its blocks, a function
that returns the initial weights, and an entry in this table. All methods share
the rest (the call, dropout, merging, distances, files).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ether.ops import values

# The package's own methods, which users can't replace.
OWN = ("ether", "ether+", "naive", "oft")
SIDES = ("input", "output", "both", "narrow", "single")
# The number of blocks that a method's learning rate is meant for.
FEW_BLOCKS = 4


@dataclass(frozen=True)
class Method:
    """A way to transform a kernel by trained block-diagonal matrices.

    Args:
        name: The name that `keras_ether.apply` takes.
        factors: Function from the method's weights, in order, to the factors
            `(left, right)` of its blocks, see `keras_ether.ops.reflections`.
        weights: Names of the method's weights, the arguments of `factors`.
        start: Function from `(blocks, width, rng)` to the initial weights, a
            tuple of float32 arrays whose first axis is `blocks`. `rng` is a
            `numpy.random.Generator`.
        side: The side that is transformed by default: `"input"`, `"output"`,
            `"both"`, `"narrow"` for the shorter of the two, or `"single"` for
            the input side, and the output side of a table, which has no other.
        orthogonal: Whether every block is orthogonal, so that its transpose
            inverts it.
        learning_rate: The learning rate for Adam to try first with four blocks,
            see `learning_rate_for`.
        min_width: Integer, the width of the smallest block that can train. A
            unit vector of one entry is a constant. Defaults to 2.
        random_start: Function of initial weights that are not the identity, for
            a learned strength, if `start` returns the identity. Defaults to
            `None`.
        turns: Whether the weights are vectors whose norm does not matter.
            Defaults to `False`.
        shapes: Function from the width of a block to the shapes of its
            weights, a tuple of tuples. With `None` each is `(width,)`.
            Defaults to `None`.
        thin: Whether `factors` returns two matrices of few rows, and not whole
            blocks `(left, None)`. A bank needs it. Defaults to `True`.
        independent: Whether the factors of each block depend only on its own
            weights. One call of `factors` may then compute blocks of several
            layers or examples. A bank needs it. Defaults to `True`.
        starts_at_identity: Whether `start` returns blocks that are exactly the
            identity. If the method is not orthogonal, loading a weights file
            over another base needs it. Defaults to `False`.
        identity_at_zero: Whether blocks whose weights are all zero are exactly
            the identity. A bank needs it. Defaults to `False`.
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
    shapes: Callable | None = None
    thin: bool = True
    independent: bool = True
    starts_at_identity: bool = False
    identity_at_zero: bool = False

    def shapes_of(self, width: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each weight of one block."""
        if self.shapes is None:
            return ((width,),) * len(self.weights)
        return self.shapes(width)

    def initial(
        self, blocks: int, width: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The initial weights, by name.

        Raises:
            ValueError: if `start` returns arrays of other shapes than `shapes`
                declares.
        """
        found = self.start(blocks, width, rng)
        received = tuple(value.shape for value in found)
        expected = tuple((blocks, *shape) for shape in self.shapes_of(width))
        if received != expected:
            raise ValueError(
                f"The initial weights of method '{self.name}' must have the "
                f"shapes {expected} for {blocks} blocks of width {width}. "
                f"Received: {received}. Its field `shapes` declares the shapes "
                "for one block."
            )
        return dict(zip(self.weights, found, strict=True))

    def learning_rate_for(self, rank_blocks: int) -> float:
        """The learning rate for Adam to try first.

        A step turns a vector of `width` entries and norm 0.58 by up to `rate *
        √width / 0.58`. With fewer than four, wider blocks, a lower rate thus
        gives the same angle. This does not hold for more blocks, nor for a
        learned strength, which tolerates a wide range of learning rates. The
        measurements are in `benchmarks/RESULTS.md`.

        Args:
            rank_blocks: Integer, the number of blocks of a kernel.

        Returns:
            Float, `learning_rate` with four blocks or more.
        """
        if not self.turns or rank_blocks >= FEW_BLOCKS:
            return self.learning_rate
        return self.learning_rate * math.sqrt(rank_blocks / FEW_BLOCKS)


METHODS: dict[str, Method] = {}
FLAGS = (
    "orthogonal",
    "turns",
    "thin",
    "independent",
    "starts_at_identity",
    "identity_at_zero",
)


def register(method: Method) -> Method:
    """Adds a method to the table.

    It replaces your own method of the same name. Models that are adapted
    already keep the old method, and so do their copies. They can't be pickled
    then, since a pickle has only the name of a method.

    Args:
        method: A `Method`.

    Returns:
        The method.

    Raises:
        ValueError: if the name belongs to one of the package's own methods, or
            a field is not as `Method` documents.
    """
    _check(method)
    if method.name in OWN and method.name in METHODS:
        raise ValueError(
            f"The package's own methods {list(OWN)} can't be replaced. Choose "
            f"another name. Received: name={method.name!r}"
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
        ("learning_rate", rate and 0 < rate < math.inf, "a positive number"),
        ("min_width", width and width > 0, "a positive integer"),
        (
            "random_start",
            method.random_start is None or callable(method.random_start),
            "a function or None",
        ),
        (
            "shapes",
            method.shapes is None or callable(method.shapes),
            "a function or None",
        ),
        *(
            (name, isinstance(getattr(method, name), bool), "True or False")
            for name in FLAGS
        ),
    ):
        if not is_right:
            raise ValueError(
                f"`{field}` of a method must be {accepted}. Received: "
                f"{field}={getattr(method, field)!r}"
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
