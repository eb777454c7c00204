"""Short digests that distinguish bases."""

import hashlib
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_ether.types import Tensor

# Kernels up to this size are read whole, larger ones are sampled at about as
# many entries: a model of 7 B parameters has a few hundred kernels, each read
# in less than a millisecond or two.
MAX_SAMPLES = 4_096
# JAX indexes tensors by 32-bit integers.
MAX_PLACES = 2**31 - 1
# Multiples of the golden ratio modulo 1 spread evenly, whatever their count.
GOLDEN = 0.6180339887498949


def fingerprint(kernel: Tensor) -> np.ndarray:
    """Digest of a kernel's shape and of values spread over it.

    Equal values give equal digests on every backend and in every dtype that
    holds them.

    Args:
        kernel: Tensor or variable of any shape.

    Returns:
        The 32 bytes of a SHA-256, as a uint8 array.
    """
    shape = tuple(kernel.shape)
    values = ops.convert_to_tensor(kernel)
    size = int(np.prod(shape, dtype="int64"))
    if size > MAX_PLACES:
        # A flat index would overflow: whole rows are sampled first.
        rows = _spread(shape[0], min(shape[0], 16))
        values = ops.take(values, rows, axis=0)
        size = size // shape[0] * len(rows)
    if size > MAX_SAMPLES:
        values = _at(values, _spread(size, MAX_SAMPLES))
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    digest = hashlib.sha256(repr(shape).encode() + values.tobytes())
    return np.frombuffer(digest.digest(), "uint8")


def fingerprint_all(variables: dict, digest_of: Callable = fingerprint) -> str:
    """One short digest of several variables and their names.

    Args:
        variables: Dictionary from name to variable. The order does not matter.
        digest_of: Function from a variable to its `fingerprint`. Defaults to
            `fingerprint`.

    Returns:
        String of 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(variables):
        digest.update(name.encode() + b"\0")
        digest.update(digest_of(variables[name]).tobytes())
    return digest.hexdigest()[:16]


def _at(values: Tensor, places: np.ndarray) -> Tensor:
    """Values at places of the flat tensor, without copying the whole tensor."""
    try:
        view = np.from_dlpack(values)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        # On an accelerator, in 16 bits, or sharded. `take` without an axis
        # indexes the flat tensor; on JAX, flattening it first would copy it.
        return ops.take(values, places)
    # Indexed by NumPy, since JAX would compile a `take` for each shape, for a
    # second or so.
    if not view.flags.c_contiguous:
        return ops.take(values, places)
    return view.reshape(-1)[places]


def _spread(size: int, count: int) -> np.ndarray:
    """Places below `size`: both ends, and others without a regular step.

    Equal steps could stay within a few columns of a matrix.
    """
    places = (np.arange(count) * GOLDEN % 1.0 * size).astype("int64")
    places = np.unique([*places, 0, size - 1])
    return places.astype("int32" if size <= MAX_PLACES else "int64")
