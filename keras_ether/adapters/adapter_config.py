"""The configuration of one adapter, which plans, files and reports share."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ether import methods
from keras_ether.ops import values
from keras_ether.types import Sizes

__all__ = ["AdapterConfig"]


@dataclass(frozen=True)
class AdapterConfig:
    """How one kernel is adapted.

    Args:
        method: String, name of a registered method. Defaults to `"ether"`.
        rank_blocks: Integer, the number of diagonal blocks `n` per side.
            Defaults to 4.
        side: `"input"`, `"output"`, `"both"`, `"narrow"` for the shorter of the
            two, `"single"` for the input side or the only one of a table, or
            `None` for the default of the method or of the layer. Defaults to
            `None`.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        strength: `None`, `"learned"` or a number in `(0, 1]`: the `s` of blocks
            `I + s (block − I)`, see `keras_ether.apply`. Defaults to `None`.
        rate_multiplier: Positive float, the `κ` of a learned strength
            `s = tanh(κ t)`: Adam's rate acts on the blocks as `κ` times itself.
            `None` takes the number for the count of adapted kernels,
            see `for_network`. Defaults to 1.

    Raises:
        ValueError: if an argument is not one of the above.

    Example:

    >>> AdapterConfig("ether+", rank_blocks=2).resolved_side
    'both'
    """

    method: str = "ether"
    rank_blocks: int = 4
    side: str | None = None
    dropout: float = 0.0
    strength: float | str | None = None
    rate_multiplier: float | None = 1.0

    def __post_init__(self) -> None:
        methods.get(self.method)
        blocks = values.integer(self.rank_blocks)
        if blocks is None or blocks <= 0:
            raise ValueError(
                "`rank_blocks` must be a positive integer. Received: "
                f"rank_blocks={self.rank_blocks!r}"
            )
        if self.side is not None and self.side not in methods.SIDES:
            raise ValueError(
                f"`side` must be one of {methods.SIDES}, or None for the "
                f"method's own. Received: side={self.side!r}"
            )
        probability = values.real(self.dropout)
        if probability is None or not 0 <= probability < 1:
            raise ValueError(
                "`dropout` must be a number of at least 0 and less than 1. "
                f"Received: dropout={self.dropout!r}"
            )
        strength = checked_strength(self.strength)
        multiplier = self.rate_multiplier
        if multiplier is not None:
            multiplier = _checked_multiplier(multiplier, strength)
        # NumPy's scalars become plain Python numbers, which files can hold.
        object.__setattr__(self, "rank_blocks", blocks)
        object.__setattr__(self, "dropout", float(probability))
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "rate_multiplier", multiplier)

    @classmethod
    def from_arguments(
        cls,
        method: str | None,
        rank_blocks: int,
        side: str | None,
        dropout: float,
        strength: float | str | None,
    ) -> "AdapterConfig":
        """The config for the arguments of `keras_ether.apply`."""
        if method is None:
            method = RECOMMENDED.method
            side = RECOMMENDED.side if side is None else side
            strength = RECOMMENDED.strength if strength is None else strength
        return cls(
            method, rank_blocks, side, dropout, strength, rate_multiplier=None
        )

    @property
    def variant(self) -> methods.Method:
        """The method, at this strength."""
        return methods.with_strength(
            methods.get(self.method),
            self.strength,
            # Some fields don't depend on the multiplier and are read before it
            # is known.
            self.rate_multiplier or 1.0,
        )

    @property
    def resolved(self) -> "AdapterConfig":
        """The config with the method's own side in place of `None`."""
        return self.on_side(self.resolved_side)

    @property
    def resolved_side(self) -> str:
        """The side, or the method's own in place of `None`."""
        return self.side or methods.get(self.method).side

    def for_network(self, kernels: int) -> "AdapterConfig":
        """The config with its rate multiplier for so many adapted kernels."""
        if self.rate_multiplier is not None:
            return self
        multiplier = 1.0
        if self.strength == methods.LEARNED:
            multiplier = methods.rate_multiplier(kernels)
        return dataclasses.replace(self, rate_multiplier=multiplier)

    def scale_of(self, multiplier: float | None) -> np.float32:
        """The factor for the variables of another rate multiplier.

        The blocks are then the same.
        """
        return np.float32((multiplier or 1.0) / (self.rate_multiplier or 1.0))

    def on_side(self, side: str) -> "AdapterConfig":
        """The config with another side."""
        return dataclasses.replace(self, side=side)

    def for_sizes(self, sizes: Sizes) -> "AdapterConfig":
        """The config with its side resolved for a kernel, `(experts, d, f)`."""
        if self.resolved_side == "single":
            return self.on_side("input")
        if self.resolved_side != "narrow":
            return self.resolved
        _, inputs, outputs = sizes
        return self.on_side("input" if inputs <= outputs else "output")

    def transforms(self, side: str) -> bool:
        """Whether `"input"` or `"output"` is transformed."""
        return self.resolved_side in (side, "both")

    def widths(self, sizes: Sizes) -> dict[str, int]:
        """The width of a block on each transformed side."""
        return {
            side: size // self.rank_blocks
            for side, size in self._transformed(sizes).items()
        }

    def _transformed(self, sizes: Sizes) -> dict[str, int]:
        """The length of each transformed side."""
        _, inputs, outputs = sizes
        config = self.for_sizes(sizes)
        return {
            side: size
            for side, size in (("input", inputs), ("output", outputs))
            if config.transforms(side)
        }

    def vector_shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """The shapes of the trained vectors by name, such as `"input_u"`."""
        method, blocks = self.variant, sizes[0] * self.rank_blocks
        return {
            f"{side}_{name}": (blocks, *shape)
            for side, width in self.widths(sizes).items()
            for name, shape in zip(
                method.weights, method.shapes_of(width), strict=False
            )
        }

    def parameters(self, sizes: Sizes) -> int:
        """Number of trained parameters for a kernel of these sizes."""
        return sum(map(math.prod, self.vector_shapes(sizes).values()))

    def check_fits(self, layer_path: str, sizes: Sizes) -> None:
        """Raises a `ValueError` if the blocks do not fit a transformed side.

        The number of blocks must divide it, and blocks must be wide enough to
        train: a unit vector of one entry is 1 or −1.
        """
        _, inputs, outputs = sizes
        transformed = self._transformed(sizes).values()
        width = self.variant.min_width
        fitting = [
            n
            for n in range(1, min(transformed) // width + 1)
            if all(size % n == 0 for size in transformed)
        ]
        blocks = self.rank_blocks
        if blocks in fitting:
            return
        if all(size % blocks == 0 for size in transformed):
            problem = "gives blocks of width 1, which never train, in"
        else:
            problem = "does not divide"
        near = sorted(sorted(fitting, key=lambda n: abs(n - blocks))[:4])
        counts = f"Nearby numbers that fit: {near}. Or" if near else ""
        raise ValueError(
            f"`rank_blocks={blocks}` {problem} layer '{layer_path}', whose "
            f"kernel has d={inputs} inputs and f={outputs} outputs "
            f"(method='{self.method}' transforms side='{self.resolved_side}'). "
            f"{counts or 'Either'} leave the layer out with `exclude`, or keep "
            "it trainable with `trainable`."
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as adapter files hold them."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        text = (
            f"method='{self.method}', rank_blocks={self.rank_blocks}, "
            f"side='{self.resolved_side}'"
        )
        if self.strength is not None:
            text += f", strength={self.strength!r}"
        if self.rate_multiplier not in (None, 1.0):
            text += f", rate_multiplier={self.rate_multiplier:g}"
        return text


def checked_strength(strength: Any) -> float | str | None:
    """A strength as `None`, `"learned"` or a plain number.

    Raises:
        ValueError: if it is none of them.
    """
    if strength is None or (
        isinstance(strength, str) and strength == methods.LEARNED
    ):
        return strength
    number = values.real(strength)
    if number is None or not 0 < number <= 1:
        raise ValueError(
            "`strength` must be None, 'learned', or a number above 0 and at "
            f"most 1. Received: strength={strength!r}"
        )
    return float(number)


def _checked_multiplier(multiplier: Any, strength: float | str | None) -> float:
    """A rate multiplier as a plain number.

    Raises:
        ValueError: if it is not positive and finite, or another than 1 where no
            strength is learned.
    """
    number = values.real(multiplier)
    if number is None or not 0 < number < math.inf:
        raise ValueError(
            "`rate_multiplier` must be a positive number. Received: "
            f"rate_multiplier={multiplier!r}"
        )
    if number != 1 and strength != methods.LEARNED:
        raise ValueError(
            "`rate_multiplier` is for strength='learned', and must be 1 "
            f"otherwise. Received: rate_multiplier={multiplier!r}, "
            f"strength={strength!r}"
        )
    return float(number)


def checked_seed(seed: Any) -> int | None:
    """A seed as a plain integer, or `None`.

    Raises:
        ValueError: if it is neither a non-negative integer nor `None`.
    """
    number = values.integer(seed)
    if seed is not None and (number is None or number < 0):
        raise ValueError(
            "`seed` must be a non-negative integer or None. Received: "
            f"seed={seed!r}"
        )
    return number


# The config if `method` is None: the best of those tried at Adam's default
# rate, see `benchmarks/RESULTS.md`.
RECOMMENDED = AdapterConfig(
    "ether+", side="single", strength=methods.LEARNED, rate_multiplier=None
)
