"""Products of rows with the thin factors of block-diagonal matrices.

A factor has a few rows of `width` numbers for each block, `(blocks, k, width)`.
If it has few rows in all, one block-diagonal matrix is best; if many, one for
each group of blocks. `arrange` chooses the form, and products with rows take
both. Products with a kernel choose for themselves.
"""

from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import add_product
from keras_ether.ops.backend import batch_matmul
from keras_ether.ops.backend import block_diagonal
from keras_ether.ops.backend import is_for_gpu
from keras_ether.ops.backend import matmul
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import swap_first
from keras_ether.ops.backend import transpose
from keras_ether.ops.backend import transposed_product
from keras_ether.types import Tensor

# A block-diagonal matrix is mostly zero. With more rows than this, products
# with the whole matrix take longer than products with its blocks.
MAX_ROWS = 16


def arrange(factor: Tensor) -> Tensor:
    """A factor in the form that makes products with rows cheapest.

    Args:
        factor: Tensor of shape `(blocks, k, width)`.

    Returns:
        A block-diagonal matrix, `(blocks * k, blocks * width)`. If that has too
        many rows, the block-diagonal matrices of groups of blocks, `(groups,
        group * k, group * width)`.
    """
    blocks, k, width = factor.shape
    group = _group(blocks, k)
    if group > 1:
        factor = block_diagonal(reshape(factor, (-1, group, k, width)))
    if group == blocks:
        return reshape(factor, (blocks * k, blocks * width))
    return reshape(factor, (-1, group * k, group * width))


def _group(blocks: int, k: int) -> int:
    """The number of blocks per matrix, which divides the number of blocks."""
    if is_for_gpu() and k == 1:
        # There, its products with single rows are sums, which fuse.
        return 1
    if blocks * k <= MAX_ROWS:
        return blocks
    if BACKEND != "torch":
        # Compilers generate separate loops for the products of single blocks.
        return 1
    fitting = range(MAX_ROWS // k, 0, -1)
    return next((n for n in fitting if blocks % n == 0), 1)


def project(x: Tensor, factor: Tensor) -> Tensor:
    """`x factorᵀ`: from `(..., blocks * width)` to `(..., blocks * k)`."""
    if len(factor.shape) == 2:
        return matmul(x, transpose(factor))
    x = split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(x * factor[:, 0], axis=-1)
    return join(_each_block(x, transpose(factor)))


def spread(s: Tensor, factor: Tensor) -> Tensor:
    """`s factor`: from `(..., blocks * k)` to `(..., blocks * width)`."""
    if len(factor.shape) == 2:
        return matmul(s, factor)
    s = split(s, transpose(factor))
    if factor.shape[1] == 1:
        return join(s * factor[:, 0])
    return join(_each_block(s, factor))


def add_spread(x: Tensor, s: Tensor, factor: Tensor) -> Tensor:
    """`x + s factor`."""
    if len(factor.shape) == 2:
        return add_product(x, s, factor)
    return x + spread(s, factor)


def contract(s: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """The gradient of `factor` in a product of rows: `sᵀ x`, in its form.

    Args:
        s: Tensor of shape `(rows, blocks * k)`.
        x: Tensor of shape `(rows, blocks * width)`.
        factor: The factor, as `arrange` gives it.
    """
    if len(factor.shape) == 2:
        return transposed_product(s, x)
    s = split(s, transpose(factor))
    x = split(x, factor)
    if factor.shape[1] == 1:
        return ops.sum(s * x, axis=0)[:, None]
    return batch_matmul(transpose(swap_first(s)), swap_first(x))


def _each_block(x: Tensor, matrices: Tensor) -> Tensor:
    """Rows `(..., blocks, a)` times `(blocks, a, b)`, block by block."""
    rows = swap_first(reshape(x, (-1, *x.shape[-2:])))
    y = swap_first(batch_matmul(rows, matrices))
    return reshape(y, (*ops.shape(x)[:-1], matrices.shape[-1]))


def flatten(x: Tensor) -> Tensor:
    """`x` with all leading axes merged."""
    return x if len(x.shape) == 2 else reshape(x, (-1, ops.shape(x)[-1]))


def kernel_rows(factor: Tensor, kernel: Tensor) -> Tensor:
    """`factor @ kernel`, `(blocks * k, columns)`.

    Args:
        factor: Tensor of shape `(blocks, k, width)`.
        kernel: Matrix with `blocks * width` rows.
    """
    if BACKEND != "torch" or factor.shape[0] == 1:
        # PyTorch multiplies each block with its own rows of the kernel, without
        # copying them. In compiled code one product takes no longer.
        factor = arrange(factor)
    if len(factor.shape) == 2:
        return factor @ kernel
    blocks, k, width = factor.shape
    kernel = reshape(kernel, (blocks, width, -1))
    return reshape(batch_matmul(factor, kernel), (blocks * k, -1))


def add_outer(matrix: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """`matrix + pᵀ q`, for factors with or without groups."""
    if len(p.shape) == 2:
        return add_spread(matrix, transpose(p), q)
    blocks, k, width = p.shape
    q = reshape(q, (blocks, k, -1))
    outer = batch_matmul(transpose(p), q)
    return matrix + reshape(outer, (blocks * width, -1))


def split(x: Tensor, factor: Tensor) -> Tensor:
    """The last axis of `x` split into the blocks of `factor`."""
    blocks, _, width = factor.shape
    return reshape(x, (*ops.shape(x)[:-1], blocks, width))


def join(x: Tensor) -> Tensor:
    """The last two axes of `x` merged."""
    *leading, blocks, width = ops.shape(x)
    return reshape(x, (*leading, blocks * width))
