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

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_ether.custom_gradient import with_gradient
from keras_ether.quick_ops import concatenate
from keras_ether.quick_ops import flip
from keras_ether.quick_ops import float32
from keras_ether.quick_ops import reciprocal_norm
from keras_ether.quick_ops import sum_last
from keras_ether.thin_factors import add_spread
from keras_ether.thin_factors import arrange
from keras_ether.thin_factors import contract
from keras_ether.thin_factors import flatten
from keras_ether.thin_factors import join
from keras_ether.thin_factors import project
from keras_ether.thin_factors import split


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
    return u * reciprocal_norm(u)


def ether_factors(u):
    """Factors of the ETHER block `I − 2 û ûᵀ` (section 3.2).

    Args:
        u: Tensor of shape `(blocks, width)`, normal vectors of the hyperplanes.

    Returns:
        `(left, right)`, float32 tensors of shape `(blocks, 1, width)`.
    """
    return _ether_forward(u)[0]


def _ether_forward(u):
    u = float32(u)
    r = reciprocal_norm(u)
    u = u * r
    left = u[:, None]
    return (left, -2.0 * left), (u, r)


def _ether_backward(kept, d_left, d_right):
    return (_unit_gradient(*kept, (d_left - 2.0 * d_right)[:, 0]),)


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
    return _ether_plus_forward(u, v)[0]


def _ether_plus_forward(u, v):
    # Side by side, so that the norms of both take the operations of one.
    pair = concatenate([float32(a)[:, None] for a in (u, v)], axis=1)
    r = reciprocal_norm(pair)
    u, v, r_u, r_v = pair[:, :1], pair[:, 1:], r[:, :1], r[:, 1:]
    # Not `v * r_v - u * r_u`: compilers contract that into a fused operation
    # that rounds one of the products only, and is not zero for `u = v`.
    u = u * (r_u / r_v)
    left = concatenate([v - u, v + u], axis=1) * r_v
    return (left, 0.5 * flip(left)), (pair, r)


def _ether_plus_backward(kept, d_left, d_right):
    pair, r = kept
    gradient = d_left + 0.5 * flip(d_right)
    d_p, d_q = gradient[:, :1], gradient[:, 1:]
    upstream = concatenate([d_q - d_p, d_q + d_p], axis=1)
    gradient = _unit_gradient(pair * r, r, upstream)
    return gradient[:, 0], gradient[:, 1]


# By hand for what is differentiated at every step: autograd's way through these
# formulas takes many more operations, which eager PyTorch feels.
ETHER_DERIVATIVE = (_ether_forward, _ether_backward)
ETHER_PLUS_DERIVATIVE = (_ether_plus_forward, _ether_plus_backward)


class Blocks(NamedTuple):
    """The blocks of one side, as a function of the numbers that train.

    Args:
        numbers: Tensors whose first axis is `blocks`.
        forward: Function from `numbers` to the factors `(left, right)` and to
            what `backward` needs of what it has computed, a tuple of tensors.
        backward: Function `(kept, d_left, d_right)` from gradients of the
            factors to those of `numbers`.
    """

    numbers: tuple
    forward: Callable
    backward: Callable

    @classmethod
    def of_factors(cls, left, right):
        """Blocks whose factors are the numbers, left to autograd from there."""
        return cls(
            (left, right),
            lambda left, right: ((left, right), ()),
            lambda kept, d_left, d_right: (d_left, d_right),
        )

    @property
    def are_thin(self):
        """Whether they have thin factors."""
        return all(number is not None for number in self.numbers)

    def factors(self):
        """The factors `(left, right)`."""
        return self.forward(*self.numbers)[0]


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
        deviation = ops.einsum("...nw,nwv->...nv", split(x, left), left)
        return x + join(deviation)
    left, right = arrange(left), arrange(ops.cast(right, x.dtype))
    if training:
        return _update(x, left, right)
    return _update_forward(x, left, right)[0]


def _unit_gradient(unit, r, upstream):
    """The gradient of `u` from that of `û = u r`, `r = 1 / ‖u‖`."""
    return (upstream - unit * sum_last(unit * upstream)) * r


def _gram(a):
    return ops.matmul(a, ops.swapaxes(a, -1, -2))


def _update_forward(x, left, right):
    """`x + (x leftᵀ) right`."""
    s = project(x, left)
    return add_spread(x, s, right), ((s,),)


def _update_backward(arguments, kept, upstream):
    (x, left, right), ((s,),) = arguments, kept
    r = project(upstream, right)
    return (
        add_spread(upstream, r, left),
        contract(flatten(r), flatten(x), left),
        contract(flatten(s), flatten(upstream), right),
    )


_update = with_gradient(_update_forward, _update_backward)
