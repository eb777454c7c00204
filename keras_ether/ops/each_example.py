"""Products in which every example of a batch has its own factors.

A stack holds the values of many adapters, `(rows, ...)`, and an integer selects
the row of each example. One gather takes the rows of a batch. The factors of
example `b` then act on the rows of `x[b]`, as two thin batched matrix products.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import batch_matmul
from keras_ether.ops.backend import block_diagonal
from keras_ether.ops.backend import dtype_name
from keras_ether.ops.backend import is_float32
from keras_ether.ops.backend import may_overwrite
from keras_ether.ops.backend import replace_row
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import swap_first
from keras_ether.ops.backend import tensor
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import MAX_ROWS
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Factors
from keras_ether.types import Tensor
from keras_ether.types import Variable

# With fewer rows per example and factor than this, for example in generation,
# the additional rows cost more than the saved passes.
MIN_ROWS_BESIDE = 8


def multiply_each(
    x: Tensor, left: Tensor, right: Tensor, owned: bool = False
) -> Tensor:
    """Multiplies the rows of each example by its own block-diagonal matrix.

    `y[b] = x[b] @ diag(I + left[b]ᵀ right[b])`. Zero factors give exactly the
    identity.

    Args:
        x: Tensor of shape `(r * batch, ..., blocks * width)`. If `r` is not 1,
            each example occurs `r` times in succession.
        left: Tensor of shape `(batch, blocks, k, width)`.
        right: Tensor of the same shape.
        owned: Whether nothing else refers to `x`, so that PyTorch may write the
            result into its memory. Defaults to `False`.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    shape = ops.shape(x)
    batch = ops.shape(left)[0]
    left, right = ops.cast(left, x.dtype), ops.cast(right, x.dtype)
    blocks, k, width = left.shape[1:]
    rows = reshape(x, (batch, -1, blocks * width))
    if blocks * k > MAX_ROWS:
        y = _add_blocks(rows, _project_blocks(rows, left), right)
    else:
        s = _project(rows, _arrange(left))
        if BACKEND == "jax" and is_float32(x):
            # This needs less computation on CPUs. On accelerators, which train
            # in 16 bits, a separate axis of blocks would need another memory
            # layout.
            y = _add_blocks(rows, reshape(s, (batch, -1, blocks, k)), right)
        else:
            y = _add_product(rows, s, _arrange(right), owned)
    return reshape(y, shape)


def add_unfolded_each(
    y: Tensor, x: Tensor, kernel: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """`multiply_each(x, left, right) @ kernel`, from the product with `x`.

    `y[b] + (x[b] leftᵀ) (right kernel)`: no transformed inputs are written.
    Zero factors give exactly `y`.

    Args:
        y: Tensor of shape `(rows, f)`, `x @ kernel`. Nothing else may refer to
            it: PyTorch may write the result into its memory.
        x: Tensor of shape `(rows, d)`, those of an example in succession.
        kernel: Tensor of shape `(d, f)`.
        left: Tensor of shape `(batch, blocks, k, width)`, with
            `blocks * width` equal to `d`.
        right: Tensor of the same shape.

    Returns:
        Tensor of shape `(rows, f)`.
    """
    shape, batch = ops.shape(y), ops.shape(left)[0]
    left, right = ops.cast(left, x.dtype), ops.cast(right, x.dtype)
    blocks, k, width = left.shape[1:]
    d, f = kernel.shape
    # Each block of all examples times its own rows of the kernel.
    right = reshape(swap_first(right), (blocks, -1, width))
    right = batch_matmul(right, reshape(kernel, (blocks, width, f)))
    right = reshape(right, (blocks, batch, k, f))
    right = reshape(swap_first(right), (batch, blocks * k, f))
    s = _project(reshape(x, (batch, -1, d)), _arrange(left))
    y = reshape(y, (batch, -1, f))
    return reshape(_add_product(y, s, right, owned=True), shape)


def unfolded_is_cheaper(
    x: Tensor, kernel: Tensor, view: MatrixView, factors: Factors
) -> bool:
    """Whether `add_unfolded_each` is cheaper than transforming the inputs `x`.

    It is cheaper for wide inputs of many rows, which it reads once and does not
    write. In return it multiplies one more row by the kernel for each factor of
    each example.
    """
    left, right = factors
    if right is None or not view.is_one_matrix:
        return False
    _, d, f = view.sizes(kernel.shape)
    blocks, k, _ = left.shape[1:]
    # On PyTorch, additions in place make this cheaper for square kernels too.
    if d < f or (d == f and BACKEND != "torch") or blocks * k > MAX_ROWS:
        return False
    if dtype_name(x) != dtype_name(kernel):
        return False
    rows = x.shape[1:]
    if not all(isinstance(size, int) for size in rows):
        # Symbols too, while a model is exported.
        return False
    return math.prod(rows) >= MIN_ROWS_BESIDE * k * d


def _arrange(factor: Tensor) -> Tensor:
    """Each example's factor as one matrix, `(batch, blocks * k, d)`."""
    blocks, k, width = factor.shape[1:]
    if blocks > 1:
        factor = block_diagonal(factor)
    return reshape(factor, (-1, blocks * k, blocks * width))


def _project(rows: Tensor, left: Tensor) -> Tensor:
    """`rows leftᵀ`, from `(batch, t, d)` and `(batch, k, d)`."""
    # The product of many rows with a few columns takes up to twice as long.
    return transpose(batch_matmul(left, transpose(rows)))


def _project_blocks(rows: Tensor, left: Tensor) -> Tensor:
    """`rows leftᵀ` by blocks, `(batch, t, blocks, k)`."""
    batch, (blocks, k, width) = ops.shape(left)[0], left.shape[1:]
    rows = reshape(rows, (batch, -1, blocks, width))
    if BACKEND != "jax":
        return ops.einsum("btnw,bnkw->btnk", rows, left)
    # XLA has no fast product of many thin matrices on CPUs.
    sums = [ops.sum(rows * left[:, None, :, i], axis=-1) for i in range(k)]
    return ops.stack(sums, axis=-1)


def _add_blocks(rows: Tensor, s: Tensor, right: Tensor) -> Tensor:
    """`rows + s right` by blocks.

    From `(batch, t, d)`, `(batch, t, blocks, k)` and the factors `right`.
    """
    batch, (blocks, k, width) = ops.shape(right)[0], right.shape[1:]
    if BACKEND != "jax":
        y = ops.einsum("btnk,bnkw->btnw", s, right)
        return rows + reshape(y, ops.shape(rows))
    # XLA fuses sums into the pass that writes their total, but writes the
    # result of a product to memory.
    if blocks * k > MAX_ROWS:
        return rows + sum(
            ops.repeat(s[..., i], width, axis=-1)
            * reshape(right[:, :, i], (batch, 1, blocks * width))
            for i in range(k)
        )
    # Block by block: no element needs to compute its block's index.
    parts = [
        rows[..., n * width : (n + 1) * width]
        + sum(s[..., n, i : i + 1] * right[:, None, n, i] for i in range(k))
        for n in range(blocks)
    ]
    return ops.concatenate(parts, axis=-1) if blocks > 1 else parts[0]


def _add_product(rows: Tensor, s: Tensor, right: Tensor, owned: bool) -> Tensor:
    """`rows + s right`, from `(batch, t, d)` and `(batch, k, d)`."""
    if BACKEND == "jax":
        return _add_blocks(rows, s[:, :, None], right[:, None])
    if BACKEND == "tensorflow":
        return rows + ops.matmul(s, right)
    if owned and may_overwrite():
        return rows.baddbmm_(s, right)
    return rows.baddbmm(s, right)


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
    """The rows of a variable at int32 `ids`, which must all exist.

    The variable must not be autocast.
    """
    if BACKEND == "torch":
        return tensor(variable).index_select(0, ids)
    if BACKEND == "tensorflow":
        value = variable.value
        # After `set_row`, TensorFlow copies a variable whenever it is read as a
        # whole. Rows read alone have a sparse gradient. (In a
        # `keras.StatelessScope` the value may be a tensor.)
        if hasattr(value, "sparse_read"):
            return value.sparse_read(ids)
    return ops.take(tensor(variable), ids, axis=0)


def set_row(
    variables: Sequence[Variable], row: int, values: Sequence[Any]
) -> None:
    """Sets one row of variables of shape `(rows, ...)`, and no other.

    A new `row` triggers no compilation. Only the row is written: on JAX the
    variables' earlier arrays are deleted.

    Args:
        variables: List of variables. On JAX one program changes them all, which
            is compiled for the first row.
        row: Integer, the same row of each.
        values: List of what the rows become, array-like, one per variable.
    """
    if BACKEND == "jax":
        made: list[Tensor] = []
        try:
            made += replace_row([v.value for v in variables], row, values)
        finally:
            # The earlier arrays are deleted: after an interrupt, too, the
            # variables must get these.
            for variable, value in zip(variables, made, strict=False):
                variable.assign(value)
        return
    for variable, value in zip(variables, values, strict=True):
        if BACKEND == "torch":
            value = ops.convert_to_tensor(value, dtype=variable.dtype)
            # Gradients do not follow assignments to `data`.
            variable.value.data[row] = value
        else:
            # A list of rows, and adding an axis to a tensor takes long.
            value = ops.convert_to_tensor(
                np.asarray(value)[None], dtype=variable.dtype
            )
            variable.value.scatter_nd_update([[row]], value)


def write_row(variable: Variable, row: Any, value: Tensor) -> None:
    """Sets one row of a variable, in a graph too."""
    if BACKEND == "torch":
        variable.value.data[row] = value
    elif BACKEND == "tensorflow":
        variable.value.scatter_nd_update(reshape(row, (1, 1)), value[None])
    else:
        variable.assign(tensor(variable).at[row].set(value))


def dense_gradient(gradient: Tensor) -> Tensor:
    """A gradient as one tensor, with the slices of a gather summed."""
    if BACKEND != "tensorflow":
        return gradient
    # `ops.convert_to_tensor` would leave slices as they are.
    return ops.reshape(gradient, tuple(gradient.shape))
