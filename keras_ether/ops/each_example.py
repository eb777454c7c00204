"""Products in which every example of a batch has its own factors.

A stack holds the values of many adapters, `(rows, ...)`, and an integer names
the row of each example. One gather takes the rows that a batch needs. The
factors of example `b` then act on the rows of `x[b]`, by two thin products of
stacks of matrices.
"""

import math
from collections.abc import Iterable
from typing import Any

from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import block_diagonal
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import tensor
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import MAX_ROWS
from keras_ether.types import Tensor
from keras_ether.types import Variable

# Up to this many rows per block, sums are quicker on JAX than products.
MAX_SUMS = 4


def multiply_each(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Multiplies the rows of each example by its own block-diagonal matrix.

    `y[b] = x[b] @ diag(I + left[b]ᵀ right[b])`. Zero factors are the identity
    exactly.

    Args:
        x: Tensor of shape `(r * batch, ..., blocks * width)`. If `r` is not 1,
            each example occurs `r` times in succession.
        left: Tensor of shape `(batch, blocks, k, width)`.
        right: Tensor of the same shape.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    shape = ops.shape(x)
    batch = ops.shape(left)[0]
    left, right = ops.cast(left, x.dtype), ops.cast(right, x.dtype)
    blocks, k, width = left.shape[1:]
    if BACKEND == "jax" and k <= MAX_SUMS:
        rows = reshape(x, (batch, -1, blocks, width))
        return reshape(_add_sums(rows, left, right), shape)
    if blocks * k <= MAX_ROWS:
        left, right = _arrange(left), _arrange(right)
        rows = reshape(x, (batch, -1, blocks * width))
        s = ops.matmul(rows, transpose(left))
        return reshape(_add_product(rows, s, right), shape)
    rows = reshape(x, (batch, -1, blocks, width))
    s = ops.einsum("btnw,bnkw->btnk", rows, left)
    return reshape(rows + ops.einsum("btnk,bnkw->btnw", s, right), shape)


def _add_sums(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`rows + rows leftᵀ right`, without a product of matrices.

    XLA fuses these sums into passes over the rows, and has no quick product of
    many thin matrices on CPUs.
    """
    y = rows
    for i in range(left.shape[2]):
        s = ops.sum(rows * left[:, None, :, i], axis=-1, keepdims=True)
        y = y + s * right[:, None, :, i]
    return y


def _arrange(factor: Tensor) -> Tensor:
    """Each example's factor as one matrix, `(batch, blocks * k, d)`."""
    blocks, k, width = factor.shape[1:]
    if blocks > 1:
        factor = block_diagonal(factor)
    return reshape(factor, (-1, blocks * k, blocks * width))


def _add_product(rows: Tensor, s: Tensor, right: Tensor) -> Tensor:
    if BACKEND == "torch":
        return rows.baddbmm(s, right)
    return rows + ops.matmul(s, right)


def matmul_each(
    x: Tensor, matrices: Tensor, biases: Tensor | None = None
) -> Tensor:
    """`y[b] = x[b] @ matrices[b] + biases[b]`.

    Args:
        x: Tensor of shape `(r * batch, ..., d)`, see `multiply_each`.
        matrices: Tensor of shape `(batch, d, f)`.
        biases: Tensor of shape `(batch, f)`, or `None`.

    Returns:
        Tensor of shape `(r * batch, ..., f)`.
    """
    batch = ops.shape(matrices)[0]
    d, f = matrices.shape[1:]
    rows = reshape(x, (batch, -1, d))
    y = ops.matmul(rows, matrices)
    if biases is not None:
        y = y + biases[:, None]
    return reshape(y, (*ops.shape(x)[:-1], f))


def where_each(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`x[b]` where `condition[b]` holds, else `y[b]`.

    Args:
        condition: Boolean tensor of shape `(batch,)`.
        x: Tensor of shape `(r * batch, ...)`, see `multiply_each`.
        y: Tensor of the same shape.
    """
    shape = ops.shape(x)
    batch = ops.shape(condition)[0]
    apart = (batch, -1, *x.shape[1:])
    condition = reshape(condition, (-1, 1) + (1,) * (len(x.shape) - 1))
    if None in x.shape[1:]:
        apart = (batch, ops.shape(x)[0] // batch, *shape[1:])
    chosen = ops.where(condition, reshape(x, apart), reshape(y, apart))
    return reshape(chosen, shape)


def take_rows(variable: Variable, ids: Tensor) -> Tensor:
    """The rows of a variable that `ids` name, all of which must exist.

    Args:
        variable: Variable of shape `(rows, ...)`.
        ids: Int32 tensor of shape `(batch,)`.
    """
    if BACKEND == "torch":
        return tensor(variable).index_select(0, ids)
    return ops.take(tensor(variable), ids, axis=0)


def set_row(variable: Variable, row: int, value: Any) -> None:
    """Sets one row of a variable of shape `(rows, ...)`, and no other.

    A new `row` compiles nothing, and where the backend's arrays can be changed,
    only the row is written.
    """
    value = ops.convert_to_tensor(value, dtype=variable.dtype)
    if BACKEND == "torch":
        # Gradients do not follow assignments to `data`.
        variable.value.data[row] = value
    elif BACKEND == "tensorflow":
        variable.value.scatter_nd_update([[row]], value[None])
    else:
        start = (row,) + (0,) * (len(variable.shape) - 1)
        variable.assign(ops.slice_update(tensor(variable), start, value[None]))


def share_of_own(ids: Tensor) -> Tensor:
    """Factors between a mean over the batch and one over an id's examples.

    For each id, the gradient of a mean over the batch, times this factor, is
    the gradient of the mean over the id's own examples. The factor of the id 0
    is zero.

    Args:
        ids: Int32 tensor of shape `(batch,)`.

    Returns:
        Float32 tensor of shape `(batch,)`.
    """
    same = ops.cast(ops.equal(ids[:, None], ids[None, :]), "float32")
    own = ops.sum(same, axis=1)
    return ops.where(ids == 0, 0.0, ops.sum(ops.ones_like(own)) / own)


def scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """`x`, whose gradient is multiplied by `scale`, one factor per example."""
    scale = reshape(scale, (-1,) + (1,) * (len(x.shape) - 1))
    constant = ops.stop_gradient(x)
    return constant + ops.cast(scale, x.dtype) * (x - constant)


def dense_gradient(gradient: Tensor) -> Tensor:
    """A gradient as one tensor, with the slices of a gather added up."""
    if BACKEND != "tensorflow":
        return gradient
    # `ops.convert_to_tensor` would leave slices as they are.
    return ops.reshape(gradient, tuple(gradient.shape))


def rows_with_gradient(gradients: Iterable[Tensor]) -> Tensor:
    """Whether any of the gradients reaches a row, for each row.

    Args:
        gradients: Tensors of shapes `(rows, ...)`.

    Returns:
        Boolean tensor of shape `(rows,)`.
    """
    found = None
    for gradient in gradients:
        shape = (gradient.shape[0], math.prod(gradient.shape[1:]))
        reached = ops.any(reshape(gradient, shape) != 0, axis=1)
        found = reached if found is None else ops.logical_or(found, reached)
    return found
