"""ETHER and ETHER+ (Bini et al., ICML 2024, sections 3.2 and 3.3)."""

import numpy as np
from keras import ops

from keras_ether.methods.registry import Method
from keras_ether.methods.registry import register
from keras_ether.ops.backend import float32
from keras_ether.ops.backend import reciprocal_norm
from keras_ether.ops.backend import stack
from keras_ether.ops.backend import unstack
from keras_ether.ops.reflections import unit
from keras_ether.types import Tensor


def ether_factors(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the ETHER block `I − 2 û ûᵀ` (section 3.2).

    Args:
        u: Tensor of shape `(blocks, width)`, normal vectors of the hyperplanes.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 1, width)`.
    """
    left = unit(u)[:, None]
    return left, -2.0 * left


def ether_plus_factors(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the ETHER+ block `I − û ûᵀ + v̂ v̂ᵀ` (section 3.3).

    `v̂ v̂ᵀ − û ûᵀ` is written as `p v̂ᵀ + û pᵀ` with `p = v̂ − û`, which is
    exactly zero where `u` and `v` are equal.

    Args:
        u: Tensor of shape `(blocks, width)`.
        v: Tensor of shape `(blocks, width)`.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 2, width)`.
    """
    # Stacked, so that one operation computes both norms.
    pair = stack([float32(u), float32(v)])
    r = reciprocal_norm(pair)
    u_hat, v_hat = unstack(pair * r)
    # The gradient is that of `v̂ − û`, the value `(v − u r_u / r_v) r_v`.
    # Compilers fuse the plain difference into an operation that rounds only one
    # product, and is not zero for `u = v`.
    p = v_hat - u_hat
    u, v = unstack(ops.stop_gradient(pair))
    r_u, r_v = unstack(ops.stop_gradient(r))
    p = p + ((v - u * (r_u / r_v)) * r_v - ops.stop_gradient(p))
    return stack([p, u_hat], axis=1), stack([v_hat, p], axis=1)


def _random_normals(
    blocks: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Vectors uniform in ±1/√width, of norm about 0.58 as in the authors' code.

    The norm determines how far one step of an optimizer turns a vector, so the
    paper's learning rates hold only for vectors of this norm.
    """
    limit = 1.0 / np.sqrt(width)
    return rng.uniform(-limit, limit, (blocks, width)).astype("float32")


def _ether_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray]:
    return (_random_normals(blocks, width, rng),)


def _ether_plus_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    u = _random_normals(blocks, width, rng)
    return u, u.copy()


def _ether_plus_random_start(
    blocks: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    u = _random_normals(blocks, width, rng)
    return u, _random_normals(blocks, width, rng)


register(
    Method(
        name="ether",
        factors=ether_factors,
        weights=("u",),
        start=_ether_start,
        side="input",
        orthogonal=True,
        learning_rate=1e-2,
        turns=True,
        identity_at_zero=True,
    )
)
register(
    Method(
        name="ether+",
        factors=ether_plus_factors,
        weights=("u", "v"),
        start=_ether_plus_start,
        side="both",
        orthogonal=False,
        learning_rate=2e-3,
        turns=True,
        random_start=_ether_plus_random_start,
        starts_at_identity=True,
        identity_at_zero=True,
    )
)
