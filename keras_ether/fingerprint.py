"""A short digest that tells one base kernel from another."""

import hashlib

import numpy as np
from keras import ops

# Kernels up to this size are read whole, of larger ones as many values, spread
# evenly: for a model of 7 B parameters, a few hundred reads of 256 KB.
MAX_SAMPLES = 65_536


def fingerprint(kernel) -> np.ndarray:
    """Digest of a kernel's shape and of values spread over it.

    Equal values give equal digests on every backend and in every dtype that
    holds them.

    Args:
        kernel: Tensor or variable of any shape.

    Returns:
        The 32 bytes of a SHA-256, as a uint8 array.
    """
    shape = tuple(kernel.shape)
    values = ops.reshape(ops.convert_to_tensor(kernel), (-1,))
    size = int(np.prod(shape))
    if size > MAX_SAMPLES:
        places = np.linspace(0, size - 1, MAX_SAMPLES).astype("int64")
        values = ops.take(values, places)
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    digest = hashlib.sha256(repr(shape).encode() + values.tobytes())
    return np.frombuffer(digest.digest(), "uint8")
