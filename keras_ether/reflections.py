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
import numpy as np
from keras import ops

from keras_ether.quick_ops import add_product
from keras_ether.quick_ops import float32
from keras_ether.quick_ops import matmul
from keras_ether.quick_ops import reshape
from keras_ether.quick_ops import transpose as transpose_matrix

# With more thin rows than this, going block by block is cheaper than a dense
# product with a block-diagonal matrix, most of which is zero.
MAX_DENSE_ROWS = 16


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
    u = float32(u)
    return u * _reciprocal_norm(u)


def ether_factors(u):
    """Factors of the ETHER block `I − 2 û ûᵀ` (section 3.2).

    Args:
        u: Tensor of shape `(blocks, width)`, normal vectors of the hyperplanes.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 1, width)`.
    """
    u = unit(u)[:, None]
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
    # Stacked, so that the norms of both take the operations of one.
    pair = ops.concatenate([float32(a)[:, None] for a in (u, v)], axis=1)
    r = _reciprocal_norm(pair)
    u, v, r_u, r_v = pair[:, :1], pair[:, 1:], r[:, :1], r[:, 1:]
    # Not `v * r_v - u * r_u`: compilers contract that into a fused operation
    # that rounds one of the products only, and is not zero for `u = v`.
    p = (v - u * (r_u / r_v)) * r_v
    q = v * r_v + u * r_u
    left = ops.concatenate([p, q], axis=1)
    return left, 0.5 * ops.flip(left, axis=1)


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
    left, right = arrange(left, ops.cast(right, x.dtype))
    # On PyTorch a custom gradient can keep its arguments only and would compute
    # `s` again; autograd keeps `x` and `s`, no more than is needed.
    if training and keras.backend.backend() != "torch":
        return _update(x, left, right)
    s = project(x, left)
    if len(right.shape) == 2:
        return add_product(x, s, right)
    return x + spread(s, right)


def is_dense(factor):
    """Whether `arrange` gives a block-diagonal matrix."""
    blocks, k, _ = factor.shape
    return blocks * k <= MAX_DENSE_ROWS


def arrange(*factors):
    """The factors of one side in the form in which products are cheapest.

    Args:
        *factors: Tensors of shape `(blocks, k, width)`.

    Returns:
        A list of the same tensors, to be gone through block by block, or, of
        few rows, of block-diagonal matrices `(blocks * k, blocks * width)`.
        What follows takes either.
    """
    blocks, k, width = factors[0].shape
    if not is_dense(factors[0]):
        return list(factors)
    if blocks == 1:
        return [factor[0] for factor in factors]
    # Not `ops.eye`: on TensorFlow it is an operation that OpenVINO can't read.
    place = ops.cast(np.eye(blocks, dtype="float32"), factors[0].dtype)
    place = place[:, None, :, None]
    return [
        reshape(factor[:, :, None] * place, (blocks * k, blocks * width))
        for factor in factors
    ]


def project(x, factor):
    """`x factorᵀ`: from `(..., blocks * width)` to `(..., blocks * k)`."""
    if len(factor.shape) == 2:
        return matmul(x, transpose_matrix(factor))
    x = _split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(x * factor[:, 0], axis=-1)
    return _join(_each_block(x, ops.swapaxes(factor, 1, 2)))


def spread(s, factor):
    """`s factor`: from `(..., blocks * k)` to `(..., blocks * width)`."""
    if len(factor.shape) == 2:
        return matmul(s, factor)
    s = _split(s, ops.swapaxes(factor, 1, 2))
    if factor.shape[1] == 1:
        return _join(s * factor[:, 0])
    return _join(_each_block(s, factor))


def contract(s, x, factor):
    """The gradient of `factor` in a product of rows: `sᵀ x`, in its form.

    Args:
        s: Tensor of shape `(rows, blocks * k)`.
        x: Tensor of shape `(rows, blocks * width)`.
        factor: The factor, as `arrange` gives it.
    """
    if len(factor.shape) == 2:
        return transpose_matrix(s) @ x
    s = _split(s, ops.swapaxes(factor, 1, 2))
    x = _split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(s * x, axis=0)[:, None]
    return ops.transpose(s, (1, 2, 0)) @ ops.swapaxes(x, 0, 1)


def _each_block(x, matrices):
    """Rows `(..., blocks, a)` times `(blocks, a, b)`, block by block."""
    rows = ops.swapaxes(reshape(x, (-1, *x.shape[-2:])), 0, 1)
    y = ops.swapaxes(rows @ matrices, 0, 1)
    return reshape(y, (*ops.shape(x)[:-1], matrices.shape[-1]))


def _reciprocal_norm(u):
    squared_norm = ops.sum(u * u, axis=-1, keepdims=True)
    # A zero is replaced before `rsqrt`, not after: the gradient of an infinity
    # is NaN even where its value is thrown away.
    is_zero = ops.cast(squared_norm == 0, "float32")
    return ops.rsqrt(squared_norm + is_zero)


def _gram(a):
    return ops.matmul(a, ops.swapaxes(a, -1, -2))


def _split(x, factor):
    blocks, _, width = factor.shape
    return reshape(x, (*ops.shape(x)[:-1], blocks, width))


def _join(x):
    *leading, blocks, width = ops.shape(x)
    return reshape(x, (*leading, blocks * width))


@ops.custom_gradient
def _update(x, left, right):
    """`x + (x leftᵀ) right`."""
    s = project(x, left)

    def gradient(upstream):
        r = project(upstream, right)
        return (
            upstream + spread(r, left),
            contract(flatten(r), flatten(x), left),
            contract(flatten(s), flatten(upstream), right),
        )

    return x + spread(s, right), gradient


def flatten(x):
    """`x` with all its leading axes made one."""
    return x if len(x.shape) == 2 else reshape(x, (-1, ops.shape(x)[-1]))
