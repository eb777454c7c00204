"""Operations that take long by their `keras.ops` names on PyTorch.

`keras.ops` looks for symbolic tensors among all that it is given, and casts
what need not be cast. For the small arrays here that takes many times what the
operation does, and an adapted layer needs many of them at each step.

By their operators some take long on TensorFlow, whose tensors have none of the
methods that JAX's and PyTorch's share.
"""

import contextlib

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax

if BACKEND == "torch":
    import torch

    _is_transformed = torch._C._are_functorch_transforms_active


def reshape(x, shape):
    """`keras.ops.reshape(x, shape)`."""
    if BACKEND == "tensorflow":
        return ops.reshape(x, shape)
    return x.reshape(shape)


def transpose(x):
    """`keras.ops.swapaxes(x, -1, -2)`."""
    return ops.swapaxes(x, -1, -2) if BACKEND == "tensorflow" else x.mT


def swap_first(x):
    """`keras.ops.swapaxes(x, 0, 1)`."""
    if BACKEND == "tensorflow":
        return ops.swapaxes(x, 0, 1)
    return x.swapaxes(0, 1)


def matmul(x, matrix):
    """`keras.ops.matmul(x, matrix)`, for a matrix.

    On TensorFlow `x @ matrix` multiplies each sample of a batch on its own,
    which without oneDNN takes several times as long as all rows at once.
    """
    return ops.matmul(x, matrix) if BACKEND == "tensorflow" else x @ matrix


def dense_product(x, kernel):
    """`keras.ops.matmul(x, kernel)`, as a plain layer with a trained kernel.

    PyTorch multiplies all rows at once where the kernel has a gradient, and may
    go sample by sample, with other roundings, where it has none, as a folded
    kernel within a gradient by hand.
    """
    if BACKEND != "torch" or len(x.shape) < 3:
        return ops.matmul(x, kernel)
    rows = x.reshape(-1, x.shape[-1]) @ kernel
    return rows.reshape(*x.shape[:-1], kernel.shape[-1])


def batch_matmul(x, y):
    """`keras.ops.matmul(x, y)`, for stacks of matrices."""
    return x.bmm(y) if BACKEND == "torch" else x @ y


def add_product(x, rows, matrix):
    """`x + rows @ matrix`, in one pass over `x` where the backend has one.

    PyTorch has, and what these operations take there is their memory traffic.
    """
    if BACKEND != "torch":
        return x + matmul(rows, matrix)
    if len(x.shape) == 2:
        return x.addmm(rows, matrix)
    flat = x.reshape(-1, x.shape[-1])
    flat = flat.addmm(rows.reshape(-1, rows.shape[-1]), matrix)
    return flat.reshape(x.shape)


def add_to(x, y):
    """`x + y`, in the memory of `x` where the backend's arrays can be changed.

    For an `x` that nothing else has: what PyTorch writes to new memory leaves
    the cache. Not where automatic differentiation or `torch.vmap` looks on, nor
    where the sum has another dtype.
    """
    if BACKEND != "torch":
        return x + y
    if torch.is_grad_enabled() or x.dtype != y.dtype or _is_transformed():
        return x + y
    return x.add_(y)


def transposed_product(s, x):
    """`sᵀ x` for matrices of many rows and few columns of `s`."""
    if BACKEND == "torch" and s.shape[1] >= 16:
        # Quicker than the other way round, and much slower with fewer columns.
        return (x.T @ s).T
    return transpose(s) @ x


def concatenate(arrays, axis=0):
    """`keras.ops.concatenate(arrays, axis)`."""
    if BACKEND == "torch":
        return torch.cat(arrays, axis)
    return ops.concatenate(arrays, axis=axis)


def flip(x):
    """`keras.ops.flip(x, axis=1)`."""
    return x.flip(1) if BACKEND == "torch" else ops.flip(x, axis=1)


def sum_last(x):
    """`keras.ops.sum(x, axis=-1, keepdims=True)`."""
    if BACKEND == "tensorflow":
        return ops.sum(x, axis=-1, keepdims=True)
    return x.sum(-1, keepdims=True)


def reciprocal_norm(x):
    """`1 / ‖x‖` along the last axis, which is kept, and 1 for a zero."""
    squared = sum_last(x * x)
    # A zero is replaced before `rsqrt`, not after: the gradient of an infinity
    # is NaN even where its value is thrown away.
    if BACKEND == "torch":
        return (squared + (squared == 0)).rsqrt()
    return ops.rsqrt(squared + ops.cast(squared == 0, squared.dtype))


def block_diagonal(x):
    """Blocks among zeros, from `(g, n, a, b)` to `(g, n, a, n, b)`."""
    if BACKEND == "torch":
        return x.permute(0, 2, 3, 1).diag_embed(0, 1, 3)
    return x[:, :, :, None] * _diagonal(x)


def _diagonal(x):
    # Not `ops.eye`: on TensorFlow it is an operation that OpenVINO can't read.
    eye = ops.cast(np.eye(x.shape[1], dtype="float32"), x.dtype)
    return eye[:, None, :, None]


def snapshot(variable):
    """The value of a variable now, which later assignments don't change.

    PyTorch assigns in place, and a gradient refuses what changed since.
    """
    return variable.value.clone() if BACKEND == "torch" else tensor(variable)


def tensor(variable, dtype=None):
    """The value of a variable, `keras.ops.cast(variable, dtype)`."""
    if BACKEND == "torch":
        value = variable.value
        if dtype is None or dtype_name(value) == dtype:
            return value
    # Of the variable, not of its value: that is a variable of TensorFlow's own,
    # which has no gradient in a custom gradient and few of a tensor's methods.
    return ops.cast(variable, dtype or variable.dtype)


def float32(x):
    """`keras.ops.cast(x, "float32")`, or `x` where it is float32 already."""
    if ops.is_tensor(x) and is_float32(x):
        return x
    return ops.cast(x, "float32")


def as_it_is(x):
    """`x`, which with its gradient is computed in the form that it has.

    XLA would move the reshaping of a few rows in front of the product that
    makes them, and copy all that is multiplied there into another order.
    """
    return jax.lax.optimization_barrier(x) if BACKEND == "jax" else x


def precise_products():
    """A context in which products of float32 are products of float32.

    On a TPU they are of bfloat16 unless JAX is told otherwise: quick enough for
    a training step, and not for a kernel that is written once and kept.
    """
    if BACKEND == "jax":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def is_eager_torch() -> bool:
    """Whether operations run one by one, on PyTorch."""
    return BACKEND == "torch" and not torch.compiler.is_compiling()


def is_sparse(x) -> bool:
    """Whether a tensor, symbolic or not, is a sparse one."""
    if isinstance(x, keras.KerasTensor):
        return x.sparse
    if BACKEND == "torch":
        return x.is_sparse
    # TensorFlow's `SparseTensor`, JAX's `BCOO`; their dense tensors have none.
    return hasattr(x, "indices")


def is_float32(x):
    return dtype_name(x) == "float32"


def dtype_name(x):
    """The dtype of a tensor as Keras names it."""
    return keras.backend.standardize_dtype(x.dtype)
