"""The paper's baselines as methods: OFT and the unconstrained control.

Both train one whole `(width, width)` matrix per block. Their number of
trainable parameters, `d · d / n`, falls with the number of blocks.
"""

import numpy as np
from keras import ops

from keras_ether.methods.registry import Method
from keras_ether.methods.registry import register
from keras_ether.types import Tensor


def oft_factors(r: Tensor) -> tuple[Tensor, None]:
    """OFT's Cayley blocks minus the identity (section 2).

    `Q = (I + S)(I − S)⁻¹` with the skew matrix `S = (R − Rᵀ) / 2`, so that `Q −
    I = 2 (I − S)⁻¹ S`. `Q` is orthogonal for every `R`, and the identity at
    zero.

    Args:
        r: Tensor of shape `(blocks, width, width)`.

    Returns:
        `(left, None)`, `left` a float32 tensor of the same shape.
    """
    r = ops.cast(r, "float32")
    skew = 0.5 * (r - ops.swapaxes(r, -1, -2))
    identity = ops.eye(r.shape[-1], dtype="float32")
    return ops.solve(identity - skew, 2.0 * skew), None


def naive_factors(matrix: Tensor) -> tuple[Tensor, None]:
    """Unconstrained blocks minus the identity (section 5.3).

    Args:
        matrix: Tensor of shape `(blocks, width, width)`.

    Returns:
        `(left, None)`, `left` a float32 tensor of the same shape.
    """
    matrix = ops.cast(matrix, "float32")
    return matrix - ops.eye(matrix.shape[-1], dtype="float32"), None


def zero_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray]:
    """OFT's initial value: `R = 0`."""
    return (np.zeros((blocks, width, width), "float32"),)


def identity_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray]:
    """The control's initial value: every block is the identity."""
    return (np.tile(np.eye(width, dtype="float32"), (blocks, 1, 1)),)


def shapes(width: int) -> tuple[tuple[int, ...], ...]:
    """The shape of a block's one weight."""
    return ((width, width),)


def random_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray]:
    """OFT's initial value for a learned strength: uniform in ±1/√width."""
    limit = 1.0 / np.sqrt(width)
    matrix = rng.uniform(-limit, limit, (blocks, width, width))
    return (matrix.astype("float32"),)


def random_start_near_identity(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray]:
    """The control's value for a learned strength: `I` plus `random_start`."""
    (identity,) = identity_start(blocks, width, rng)
    return (identity + random_start(blocks, width, rng)[0],)


register(
    Method(
        name="oft",
        factors=oft_factors,
        weights=("r",),
        start=zero_start,
        side="input",
        orthogonal=True,
        learning_rate=1e-3,
        random_start=random_start,
        shapes=shapes,
        thin=False,
        starts_at_identity=True,
        identity_at_zero=True,
    )
)
register(
    Method(
        name="naive",
        factors=naive_factors,
        weights=("matrix",),
        start=identity_start,
        side="input",
        orthogonal=False,
        learning_rate=1e-3,
        min_width=1,
        random_start=random_start_near_identity,
        shapes=shapes,
        thin=False,
        starts_at_identity=True,
    )
)
