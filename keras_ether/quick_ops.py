"""Operations that take long by their `keras.ops` names on PyTorch.

`keras.ops` looks for symbolic tensors among all that it is given. Where an
argument is a tuple, such as a shape, or nothing is to be done, that takes some
40 µs, many times what the operation does. An adapted layer needs a dozen of
them at each call.

By their operators some take long on TensorFlow, whose tensors have none of the
methods that are looked for here.
"""

import keras
from keras import ops


def reshape(x, shape):
    """`keras.ops.reshape(x, shape)`, by the tensor's method if it has one."""
    if hasattr(x, "reshape"):
        return x.reshape(shape)
    return ops.reshape(x, shape)


def transpose(matrix):
    """`keras.ops.transpose(matrix)`, for two axes, in the same way."""
    if hasattr(matrix, "T"):
        return matrix.T
    return ops.transpose(matrix)


def matmul(x, matrix):
    """`keras.ops.matmul(x, matrix)`, for a matrix, in the same way.

    On TensorFlow `x @ matrix` multiplies each sample of a batch on its own,
    which without oneDNN takes several times as long as all rows at once.
    """
    if hasattr(x, "reshape"):
        return x @ matrix
    return ops.matmul(x, matrix)


def add_product(x, rows, matrix):
    """`x + rows @ matrix`, in one pass over `x` where the tensor has one.

    On PyTorch it has, and what these operations take is their memory traffic.
    """
    if not hasattr(x, "addmm"):
        return x + matmul(rows, matrix)
    flat = reshape(x, (-1, x.shape[-1]))
    flat = flat.addmm(reshape(rows, (-1, rows.shape[-1])), matrix)
    return reshape(flat, x.shape)


def float32(x):
    """`keras.ops.cast(x, "float32")`, or `x` where it is float32 already."""
    if ops.is_tensor(x) and is_float32(x):
        return x
    return ops.cast(x, "float32")


def is_float32(x):
    return keras.backend.standardize_dtype(x.dtype) == "float32"
