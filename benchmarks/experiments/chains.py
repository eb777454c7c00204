"""Chains: a product of `k` of ETHER's reflections in each block.

They are not in the package, since they beat nothing at equal parameters, see
RESULTS.md. `register` adds them as a method of one's own.
"""

import numpy as np
from keras import ops

from keras_ether import methods
from keras_ether.methods.ether import ether_plus_factors


def factors(u):
    """Factors of `k` reflections in a row, `Π (I − 2 ûᵢ ûᵢᵀ)`.

    With `p = v̂ − û`, a pair of reflections is

        (I − 2 û ûᵀ) (I − 2 v̂ v̂ᵀ) = I + 2 û (p − ‖p‖² v̂)ᵀ − 2 p v̂ᵀ

    which is exactly the identity where `u` and `v` are equal, and so is a
    product of such pairs.

    Args:
        u: Tensor of shape `(blocks, k, width)`, `k` even.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, k, width)`.
    """
    blocks, k, width = u.shape
    pairs = ops.reshape(u, (-1, 2, width))
    p_and_u, v_and_p = ether_plus_factors(pairs[:, 0], pairs[:, 1])
    p, u_hat, v_hat = p_and_u[:, :1], p_and_u[:, 1:], v_and_p[:, :1]
    squared = ops.sum(p * p, axis=-1, keepdims=True)
    shape = (blocks, k // 2, 2, width)
    lefts = ops.reshape(ops.concatenate([2.0 * u_hat, p], axis=1), shape)
    rights = ops.concatenate([p - squared * v_hat, -2.0 * v_hat], axis=1)
    rights = ops.reshape(rights, shape)
    left, right = lefts[:, 0], rights[:, 0]
    for i in range(1, k // 2):
        # (I + Lᵀ R) (I + lᵀ r) = I + Lᵀ (R + (R lᵀ) r) + lᵀ r
        inner = ops.matmul(right, ops.swapaxes(lefts[:, i], -1, -2))
        right = right + ops.matmul(inner, rights[:, i])
        left = ops.concatenate([left, lefts[:, i]], axis=1)
        right = ops.concatenate([right, rights[:, i]], axis=1)
    return left, right


def register(k):
    """Registers chains of `k` reflections, if they are not yet.

    Args:
        k: Even integer.

    Returns:
        The name that `keras_ether.apply` takes.
    """
    method = method_of(k)
    if method.name not in methods.METHODS:
        methods.register(method)
    return method.name


def method_of(k):
    """The method of chains of `k` reflections, which start in equal pairs."""

    def start(blocks, width, rng):
        limit = 1.0 / np.sqrt(width)
        normals = rng.uniform(-limit, limit, (blocks, k // 2, width))
        return (np.repeat(normals, 2, axis=1).astype("float32"),)

    return methods.Method(
        name=f"chain-{k}",
        factors=factors,
        weights=("u",),
        start=start,
        side="input",
        orthogonal=True,
        learning_rate=2e-3,
        shapes=lambda width: ((k, width),),
        starts_at_identity=True,
        identity_at_zero=True,
    )
