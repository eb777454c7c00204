"""Products of rows with the thin factors of block-diagonal matrices.

A factor has a few rows of `width` numbers for each block, `(blocks, k, width)`.
Few in all, they are best written as one block-diagonal matrix; many, most of
which would be zero, are gone through block by block. `arrange` chooses, and all
that follows it here takes either.
"""

from keras import ops

from keras_ether.quick_ops import add_product
from keras_ether.quick_ops import block_diagonal
from keras_ether.quick_ops import eye
from keras_ether.quick_ops import matmul
from keras_ether.quick_ops import reshape
from keras_ether.quick_ops import transpose
from keras_ether.quick_ops import transposed_product

# With more thin rows than this, going block by block is cheaper than a dense
# product with a block-diagonal matrix, most of which is zero.
MAX_DENSE_ROWS = 16


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
    """
    blocks, k, width = factors[0].shape
    if not is_dense(factors[0]):
        return list(factors)
    if blocks == 1:
        return [factor[0] for factor in factors]
    place = eye(blocks, factors[0])[:, None, :, None]
    return [
        reshape(factor[:, :, None] * place, (blocks * k, blocks * width))
        for factor in factors
    ]


def arrange_gradients(blocks, *gradients):
    """Gradients of factors from those of what `arrange` has made of them."""
    if len(gradients[0].shape) == 3:
        return list(gradients)
    if blocks == 1:
        return [gradient[None] for gradient in gradients]
    rows, columns = gradients[0].shape
    shape = (blocks, rows // blocks, blocks, columns // blocks)
    return [block_diagonal(reshape(g, shape)) for g in gradients]


def project(x, factor):
    """`x factorᵀ`: from `(..., blocks * width)` to `(..., blocks * k)`."""
    if len(factor.shape) == 2:
        return matmul(x, transpose(factor))
    x = split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(x * factor[:, 0], axis=-1)
    return join(_each_block(x, ops.swapaxes(factor, 1, 2)))


def spread(s, factor):
    """`s factor`: from `(..., blocks * k)` to `(..., blocks * width)`."""
    if len(factor.shape) == 2:
        return matmul(s, factor)
    s = split(s, ops.swapaxes(factor, 1, 2))
    if factor.shape[1] == 1:
        return join(s * factor[:, 0])
    return join(_each_block(s, factor))


def add_spread(x, s, factor):
    """`x + s factor`."""
    if len(factor.shape) == 2:
        return add_product(x, s, factor)
    return x + spread(s, factor)


def contract(s, x, factor):
    """The gradient of `factor` in a product of rows: `sᵀ x`, in its form.

    Args:
        s: Tensor of shape `(rows, blocks * k)`.
        x: Tensor of shape `(rows, blocks * width)`.
        factor: The factor, as `arrange` gives it.
    """
    if len(factor.shape) == 2:
        return transposed_product(s, x)
    s = split(s, ops.swapaxes(factor, 1, 2))
    x = split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(s * x, axis=0)[:, None]
    return ops.transpose(s, (1, 2, 0)) @ ops.swapaxes(x, 0, 1)


def inner(a, b):
    """`a bᵀ` of two factors, block by block where they are."""
    if len(a.shape) == 2:
        return a @ transpose(b)
    return a @ ops.swapaxes(b, 1, 2)


def add_rows(factor, s, other):
    """`factor + s other`, for `s` as `inner` gives it."""
    if len(factor.shape) == 2:
        return add_product(factor, s, other)
    return factor + s @ other


def _each_block(x, matrices):
    """Rows `(..., blocks, a)` times `(blocks, a, b)`, block by block."""
    rows = ops.swapaxes(reshape(x, (-1, *x.shape[-2:])), 0, 1)
    y = ops.swapaxes(rows @ matrices, 0, 1)
    return reshape(y, (*ops.shape(x)[:-1], matrices.shape[-1]))


def flatten(x):
    """`x` with all its leading axes made one."""
    return x if len(x.shape) == 2 else reshape(x, (-1, ops.shape(x)[-1]))


def matrix_rows(factor, matrix):
    """`factor @ matrix`, `(blocks * k, columns)`."""
    if len(factor.shape) == 2:
        return factor @ matrix
    blocks, k, width = factor.shape
    matrix = reshape(matrix, (blocks, width, -1))
    return reshape(factor @ matrix, (blocks * k, -1))


def matrix_rows_gradient(upstream, matrix, factor):
    """The gradient of `factor` in `matrix_rows`, in its form."""
    if len(factor.shape) == 2:
        return upstream @ transpose(matrix)
    blocks, k, width = factor.shape
    upstream = reshape(upstream, (blocks, k, -1))
    matrix = reshape(matrix, (blocks, width, -1))
    return upstream @ ops.swapaxes(matrix, 1, 2)


def split(x, factor):
    """The last axis of `x` as the blocks of `factor` and what is in each."""
    blocks, _, width = factor.shape
    return reshape(x, (*ops.shape(x)[:-1], blocks, width))


def join(x):
    """The last two axes of `x` made one."""
    *leading, blocks, width = ops.shape(x)
    return reshape(x, (*leading, blocks * width))
