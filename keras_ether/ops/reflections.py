"""Block-diagonal reflections as functions of arrays.

Every block is written as the identity plus a product of two thin factors,

    block = I + left.T @ right        left, right: (blocks, k, width)

with `k = 1` for ETHER and `k = 2` for ETHER+ (Bini et al., ICML 2024, sections
3.2 to 3.4). A reflection matrix is never formed: activations are multiplied by
the factors, at the cost of `k` vectors per block. If `right` is `None`, `left`
is not a factor but the whole difference `block − I`, `(blocks, width, width)`.

This module does not depend on layers. Norms are computed in float32 for
activations of any dtype, and products in the dtype of the activations.
"""

from keras import ops

from keras_ether.ops.backend import float32
from keras_ether.ops.backend import is_float32
from keras_ether.ops.backend import reciprocal_norm
from keras_ether.ops.backend import with_barrier
from keras_ether.ops.block_diagonal import add_spread
from keras_ether.ops.block_diagonal import arrange
from keras_ether.ops.block_diagonal import contract
from keras_ether.ops.block_diagonal import flatten
from keras_ether.ops.block_diagonal import join
from keras_ether.ops.block_diagonal import project
from keras_ether.ops.block_diagonal import split
from keras_ether.ops.custom_gradient import with_gradient
from keras_ether.ops.each_example import multiply_each
from keras_ether.types import Arrays
from keras_ether.types import Factors
from keras_ether.types import Gradients
from keras_ether.types import Saved
from keras_ether.types import Tensor

__all__ = ["distance", "multiply", "transpose", "unit"]


def unit(u: Tensor) -> Tensor:
    """Returns `u / ‖u‖` along the last axis; zero vectors stay zero.

    The gradient is finite everywhere, at zero vectors too.

    Args:
        u: Tensor of shape `(..., width)`.

    Returns:
        Float32 tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(unit(np.array([[3.0, 4.0], [0.0, 0.0]]))).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    u = float32(u)
    return u * reciprocal_norm(u)


def transpose(left: Tensor, right: Tensor | None = None) -> Factors:
    """Factors of the transposed blocks."""
    if right is None:
        return ops.swapaxes(left, -1, -2), None
    return right, left


def distance(left: Tensor, right: Tensor | None = None) -> Tensor:
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


def multiply(
    x: Tensor,
    left: Tensor,
    right: Tensor | None = None,
    training: bool = False,
    owned: bool = False,
) -> Tensor:
    """Multiplies rows by a block-diagonal matrix, `x @ diag(I + leftᵀ right)`.

    Args:
        x: Tensor of shape `(..., blocks * width)`.
        left: Tensor of shape `(blocks, k, width)`, or `(batch, blocks, k,
            width)` if each example, along the first axis of `x`, has its own
            factors, see `keras_ether.ops.each_example`.
        right: Tensor of the same shape, or `None` if `left` is `block − I`.
        training: Whether a gradient will be asked for. Values and gradients are
            the same. With `True`, a custom gradient saves only `x` and a thin
            product. With `False`, only plain operations are used, which every
            exporter can read. Defaults to `False`.
        owned: Whether nothing else refers to `x`, see `multiply_each`. Defaults
            to `False`.

    Returns:
        Tensor of the shape and dtype of `x`.

    Example:

    >>> left, right = ether_factors(np.array([[1.0, 0.0]]))
    >>> ops.convert_to_numpy(multiply(ops.array([[3.0, 4.0]]), left, right))
    array([[-3.,  4.]], dtype=float32)
    """
    if right is not None and len(left.shape) == 4:
        return multiply_each(x, left, right, owned)
    left = ops.cast(left, x.dtype)
    if right is None:
        deviation = ops.einsum("...nw,nwv->...nv", split(x, left), left)
        return x + join(deviation)
    left, right = arrange(left), arrange(ops.cast(right, x.dtype))
    if not is_float32(x) and left.shape[0] > 1:
        # (XLA turns a product with one row into a sum.)
        left, right = with_barrier(left), with_barrier(right)
    if training:
        return _update(x, left, right)
    return _update_forward(x, left, right)[0]


def _gram(a: Tensor) -> Tensor:
    return ops.matmul(a, ops.swapaxes(a, -1, -2))


def _update_forward(
    x: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Saved]:
    """`x + (x leftᵀ) right`."""
    s = project(x, left)
    return add_spread(x, s, right), ((s,),)


def _update_backward(
    arguments: Arrays, saved: Saved, upstream: Tensor
) -> Gradients:
    (x, left, right), ((s,),) = arguments, saved
    r = project(upstream, right)
    return (
        add_spread(upstream, r, left),
        contract(flatten(r), flatten(x), left),
        contract(flatten(s), flatten(upstream), right),
    )


_update = with_gradient(_update_forward, _update_backward)
