"""Block-diagonal reflections as functions of arrays.

Every block is written as the identity plus a product of two thin factors,

    block = I + left.T @ right        left, right: (blocks, k, width)

with `k = 1` for ETHER and `k = 2` for ETHER+ (Bini et al., ICML 2024, sections
3.2 to 3.4). A reflection matrix is never formed: activations are multiplied by
the factors, at the cost of `k` vectors per block. `right=None` says that `left`
is not a factor but the whole deviation `block − I`, `(blocks, width, width)`.

Nothing here knows of layers. Norms are computed in float32 whatever the dtype
of the activations, products in the dtype of the activations.
"""

import keras
from keras import ops

# With more thin rows than this, contracting block by block is cheaper than a
# dense product with a block-diagonal matrix, most of which is zero.
MAX_DENSE_ROWS = 32


def unit(u):
    """Returns `u / ‖u‖` along the last axis; zero vectors stay zero.

    The gradient is finite everywhere, and zero at a zero vector.

    Args:
        u: Tensor of shape `(..., width)`.

    Returns:
        Float32 tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(unit(np.array([[3.0, 4.0], [0.0, 0.0]]))).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    u = ops.cast(u, "float32")
    return u * _reciprocal_norm(u)


def ether_factors(u):
    """Factors of the ETHER block `I − 2 û ûᵀ` (section 3.2).

    Args:
        u: Tensor of shape `(blocks, width)`, normal vectors of the hyperplanes.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 1, width)`.
    """
    u = ops.expand_dims(unit(u), axis=1)
    return u, -2.0 * u


def ether_plus_factors(u, v):
    """Factors of the ETHER+ block `I − û ûᵀ + v̂ v̂ᵀ` (section 3.3).

    `v̂ v̂ᵀ − û ûᵀ` is written as `½ (p qᵀ + q pᵀ)` with `p = v̂ − û` and
    `q = v̂ + û`, which is zero to the bit where `u` and `v` are equal.

    Args:
        u: Tensor of shape `(blocks, width)`.
        v: Tensor of shape `(blocks, width)`.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 2, width)`.
    """
    u, v = ops.cast(u, "float32"), ops.cast(v, "float32")
    r_u, r_v = _reciprocal_norm(u), _reciprocal_norm(v)
    # Not `v * r_v - u * r_u`: compilers contract that into a fused operation
    # that rounds one of the products only, and is not zero for `u = v`.
    p = (v - u * (r_u / r_v)) * r_v
    q = v * r_v + u * r_u
    return ops.stack([p, q], axis=1), 0.5 * ops.stack([q, p], axis=1)


def transpose(left, right=None):
    """Factors of the transposed blocks."""
    if right is None:
        return ops.swapaxes(left, -1, -2), None
    return right, left


def distance(left, right=None):
    """Distance of each block from the identity, `‖block − I‖_F`.

    Args:
        left: Tensor of shape `(blocks, k, width)`.
        right: Tensor of the same shape, or `None`.

    Returns:
        Tensor of shape `(blocks,)`: 2 for ETHER, at most √2 for ETHER+.
    """
    if right is None:
        squared = ops.sum(ops.square(left), axis=(-1, -2))
    else:
        # ‖Lᵀ R‖² = Σ (L Lᵀ) ∘ (R Rᵀ), from two matrices of k x k.
        squared = ops.sum(_gram(left) * _gram(right), axis=(-1, -2))
    return ops.sqrt(ops.maximum(squared, 0.0))


def multiply(x, left, right=None, training=False):
    """Multiplies rows by a block-diagonal matrix, `x @ diag(I + leftᵀ right)`.

    Args:
        x: Tensor of shape `(..., blocks * width)`.
        left: Tensor of shape `(blocks, k, width)`.
        right: Tensor of the same shape, or `None` where `left` is the blocks'
            whole deviation from the identity.
        training: Whether a gradient will be asked for. Values and gradients are
            the same either way. With `True`, a custom gradient keeps `x` and a
            thin product in memory and nothing else; with `False`, plain
            operations are what every exporter can read. Defaults to `False`.

    Returns:
        Tensor of the shape and dtype of `x`.

    Example:

    >>> left, right = ether_factors(np.array([[1.0, 0.0]]))
    >>> ops.convert_to_numpy(multiply(ops.array([[3.0, 4.0]]), left, right))
    array([[-3.,  4.]], dtype=float32)
    """
    left = ops.cast(left, x.dtype)
    if right is None:
        deviation = ops.einsum("...nw,nwv->...nv", _split(x, left), left)
        return x + _join(deviation)
    right = ops.cast(right, x.dtype)
    blocks, k, _ = left.shape
    if blocks * k > MAX_DENSE_ROWS:
        x = _split(x, left)
        s = ops.einsum("...nw,nkw->...nk", x, left)
        return _join(x + ops.einsum("...nk,nkw->...nw", s, right))
    left, right = _block_diagonal(left), _block_diagonal(right)
    # On PyTorch a custom gradient can keep its arguments only and would compute
    # `s` again; autograd keeps `x` and `s`, no more than is needed.
    if training and keras.backend.backend() != "torch":
        return _update(x, left, right)
    return x + ops.matmul(ops.matmul(x, ops.transpose(left)), right)


def _reciprocal_norm(u):
    squared_norm = ops.sum(ops.square(u), axis=-1, keepdims=True)
    # A zero is replaced before `rsqrt`, not after: the gradient of an infinity
    # is NaN even where its value is thrown away.
    is_zero = ops.cast(ops.equal(squared_norm, 0), "float32")
    return ops.rsqrt(squared_norm + is_zero)


def _gram(a):
    return ops.matmul(a, ops.swapaxes(a, -1, -2))


def _split(x, factor):
    blocks, _, width = factor.shape
    return ops.reshape(x, (*ops.shape(x)[:-1], blocks, width))


def _join(x):
    *leading, blocks, width = ops.shape(x)
    return ops.reshape(x, (*leading, blocks * width))


def _block_diagonal(factor):
    """Spreads `(blocks, k, width)` out to `(blocks * k, blocks * width)`."""
    blocks, k, width = factor.shape
    if blocks == 1:
        return factor[0]
    place = ops.reshape(
        ops.eye(blocks, dtype=factor.dtype), (blocks, 1, blocks, 1)
    )
    spread = ops.expand_dims(factor, axis=2) * place
    return ops.reshape(spread, (blocks * k, blocks * width))


@ops.custom_gradient
def _update(x, left, right):
    """`x + (x leftᵀ) right` for matrices of a few rows."""
    s = ops.matmul(x, ops.transpose(left))

    def gradient(upstream):
        r = ops.matmul(upstream, ops.transpose(right))
        return (
            upstream + ops.matmul(r, left),
            _contract_rows(r, x),
            _contract_rows(s, upstream),
        )

    return x + ops.matmul(s, right), gradient


def _contract_rows(a, b):
    """`aᵀ b` over all leading axes."""
    a = ops.reshape(a, (-1, a.shape[-1]))
    b = ops.reshape(b, (-1, b.shape[-1]))
    return ops.matmul(ops.transpose(a), b)
