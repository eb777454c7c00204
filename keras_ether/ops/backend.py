"""Operations whose `keras.ops` call overhead is high on PyTorch.

`keras.ops` searches all arguments for symbolic tensors, and makes needless
casts. For the small arrays here this takes many times as long as the operation,
and an adapted layer runs many such operations at each step.

On TensorFlow some operators are slow, and tensors lack the methods that JAX's
and PyTorch's share.
"""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.types import Tensor
from keras_ether.types import Variable

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax

    @functools.partial(jax.jit, donate_argnums=0)
    def _replace_row(
        arrays: Sequence[Tensor], row: int, values: Sequence[Tensor]
    ) -> list[Tensor]:
        return [
            jax.lax.dynamic_update_index_in_dim(array, value, row, axis=0)
            for array, value in zip(arrays, values, strict=True)
        ]


if BACKEND == "torch":
    import torch

    from keras_ether import _torch_internals


def reshape(x: Tensor, shape: Sequence[Any]) -> Tensor:
    """`keras.ops.reshape(x, shape)`."""
    if BACKEND == "tensorflow":
        return ops.reshape(x, shape)
    return x.reshape(shape)


def transpose(x: Tensor) -> Tensor:
    """`keras.ops.swapaxes(x, -1, -2)`."""
    return ops.swapaxes(x, -1, -2) if BACKEND == "tensorflow" else x.mT


def swap_first(x: Tensor) -> Tensor:
    """`keras.ops.swapaxes(x, 0, 1)`."""
    if BACKEND == "tensorflow":
        return ops.swapaxes(x, 0, 1)
    return x.swapaxes(0, 1)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """`keras.ops.matmul(x, matrix)`, for a matrix.

    On TensorFlow `x @ matrix` multiplies each sample of a batch separately,
    which without oneDNN takes several times as long as all rows at once.
    """
    return ops.matmul(x, matrix) if BACKEND == "tensorflow" else x @ matrix


def dense_product(x: Tensor, kernel: Tensor) -> Tensor:
    """`keras.ops.matmul(x, kernel)`, rounded as in a plain layer that trains.

    PyTorch multiplies all rows at once if the kernel has a gradient. Without a
    gradient, as for a folded kernel in a custom gradient, it may multiply
    sample by sample, which rounds differently.
    """
    if BACKEND != "torch" or len(x.shape) < 3:
        return ops.matmul(x, kernel)
    rows = x.reshape(-1, x.shape[-1]) @ kernel
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def batch_matmul(x: Tensor, y: Tensor) -> Tensor:
    """`keras.ops.matmul(x, y)`, for stacks of matrices."""
    return x.bmm(y) if BACKEND == "torch" else x @ y


def add_product(x: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    """`x + rows @ matrix`, in one pass over `x` if the backend can.

    PyTorch has such an operation, and memory traffic dominates the time there.
    """
    if BACKEND != "torch":
        return x + matmul(rows, matrix)
    if len(x.shape) == 2:
        return x.addmm(rows, matrix)
    flat = x.reshape(-1, x.shape[-1])
    flat = flat.addmm(rows.reshape(-1, rows.shape[-1]), matrix)
    return flat.reshape(x.shape)


def add_to(x: Tensor, y: Tensor) -> Tensor:
    """`x + y`, in the memory of `x` if the backend's arrays are mutable.

    `x` must have no other references. On PyTorch, writing to new memory would
    leave the cache. Under automatic differentiation or `torch.vmap`, or if the
    sum has another dtype, the result is a new tensor.
    """
    if not may_overwrite() or x.dtype != y.dtype:
        return x + y
    return x.add_(y)


def may_overwrite() -> bool:
    """Whether results may be written into arrays without other references."""
    return (
        BACKEND == "torch"
        and not torch.is_grad_enabled()
        and not is_transformed()
    )


def transposed_product(s: Tensor, x: Tensor) -> Tensor:
    """`sᵀ x` for matrices of many rows, and few columns of `s`."""
    if BACKEND == "torch" and s.shape[1] >= 16:
        # Faster than `sᵀ x` here, and much slower with fewer columns.
        return (x.T @ s).T
    return transpose(s) @ x


def concatenate(arrays: Sequence[Tensor]) -> Tensor:
    """`keras.ops.concatenate(arrays)`."""
    return torch.cat(arrays) if BACKEND == "torch" else ops.concatenate(arrays)


def stack(arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
    """`keras.ops.stack(arrays, axis)`."""
    if BACKEND == "torch":
        return torch.stack(arrays, axis)
    return ops.stack(arrays, axis=axis)


def unstack(x: Tensor) -> Sequence[Tensor]:
    """`keras.ops.unstack(x)`, whose gradient is one operation on PyTorch."""
    return x.unbind() if BACKEND == "torch" else ops.unstack(x)


def reciprocal_norm(x: Tensor) -> Tensor:
    """`1 / ‖x‖` along the last axis, kept as 1, and 1 for a zero vector."""
    if BACKEND == "tensorflow":
        squared = ops.sum(x * x, axis=-1, keepdims=True)
    else:
        squared = (x * x).sum(-1, keepdims=True)
    # A zero is replaced before `rsqrt`, not after: the gradient of an infinity
    # is NaN even if its value is discarded.
    if BACKEND == "torch":
        return (squared + (squared == 0)).rsqrt()
    return ops.rsqrt(squared + ops.cast(squared == 0, squared.dtype))


def block_diagonal(x: Tensor) -> Tensor:
    """Block-diagonal matrices, from `(g, n, a, b)` to `(g, n, a, n, b)`."""
    if BACKEND == "torch":
        return x.permute(0, 2, 3, 1).diag_embed(0, 1, 3)
    # Not `ops.eye`: on TensorFlow it is an operation that OpenVINO can't read.
    eye = ops.cast(np.eye(x.shape[1], dtype="float32"), x.dtype)
    return x[:, :, :, None] * eye[:, None, :, None]


def snapshot(variable: Variable) -> Tensor:
    """The current value of a variable, which later assignments don't change.

    PyTorch assigns in place, and its gradients refuse tensors that were
    changed.
    """
    return variable.value.clone() if BACKEND == "torch" else tensor(variable)


def tensor(variable: Variable, dtype: str | None = None) -> Tensor:
    """The value of a variable, `keras.ops.cast(variable, dtype)`."""
    if BACKEND == "torch":
        value = variable.value
        if dtype is None or dtype_name(value) == dtype:
            return value
    # Casts the variable, not its value: on TensorFlow that is a `tf.Variable`,
    # which has no gradient in a custom gradient and few of a tensor's methods.
    return ops.cast(variable, dtype or variable.dtype)


def float32(x: Tensor) -> Tensor:
    """`keras.ops.cast(x, "float32")`, or `x` where it is float32 already."""
    if ops.is_tensor(x) and is_float32(x):
        return x
    return ops.cast(x, "float32")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is float64."""
    return x if dtype_name(x) == "float64" else ops.cast(x, "float32")


def with_barrier(x: Tensor) -> Tensor:
    """`x`, behind a barrier that XLA's rewriting does not cross.

    XLA would move the reshaping of a few rows before the product that computes
    them, and copy the operands of the product into another order. The same
    holds for the gradient.
    """
    return jax.lax.optimization_barrier(x) if BACKEND == "jax" else x


def replace_row(
    arrays: Sequence[Tensor], row: int, values: Sequence[Any]
) -> list[Tensor]:
    """Replaces one row of arrays of JAX by one program, in their own memory.

    The arrays passed are deleted. Replacing rows one by one would run a program
    for each array, which takes most of the time. So would making a tensor of
    each value.
    """
    values = [
        np.asarray(value).astype(array.dtype)
        for array, value in zip(arrays, values, strict=True)
    ]
    return _replace_row(arrays, row, values)


def precise_products() -> contextlib.AbstractContextManager:
    """A context in which float32 products are computed in float32.

    On a TPU, JAX computes them in bfloat16 by default. That is fast and precise
    enough for a training step, but not for a kernel that is written once and
    stored.
    """
    if BACKEND == "jax":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` runs, such as `torch.vmap`."""
    return BACKEND == "torch" and _torch_internals.is_transformed()


def is_for_gpu() -> bool:
    """Whether JAX traces now for XLA on a GPU."""
    return BACKEND == "jax" and jax.default_backend() == "gpu"


def not_compiled(function: Callable) -> Callable:
    """A function that PyTorch's compiler does not trace."""
    return torch.compiler.disable(function) if BACKEND == "torch" else function


def is_sparse(x: Tensor) -> bool:
    """Whether a tensor, symbolic or not, is sparse."""
    if isinstance(x, keras.KerasTensor):
        return x.sparse
    if BACKEND == "torch":
        return x.is_sparse
    # TensorFlow's `SparseTensor` and JAX's `BCOO` have it; dense tensors don't.
    return hasattr(x, "indices")


def map_values(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, of the values of `x` if TensorFlow has it as ragged.

    `function` maps the last axis of a tensor.
    """
    if hasattr(x, "with_flat_values"):
        return x.with_flat_values(function(x.flat_values))
    return function(x)


def is_float32(x: Tensor) -> bool:
    return dtype_name(x) == "float32"


def dtype_name(x: Tensor) -> str:
    """The dtype of a tensor as Keras names it."""
    return keras.backend.standardize_dtype(x.dtype)
