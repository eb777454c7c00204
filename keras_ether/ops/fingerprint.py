"""Short digests that distinguish bases.

A digest depends on every entry. Let `b` be the bits of an entry as float32, `i`
its index and `w` fixed odd numbers. The digest is a hash of the shape and of
two sums

    Σᵢ w(i − i mod N) w(i mod N) (b ⊕ (b >> 16))        modulo 2³²

with `N = CHUNK`. The sums read the memory once, on its own device, in any
order: by chunks, or by shards. A change of one entry always changes both sums,
since the weights are odd. The shift moves the upper bits down, because 16-bit
values and small integers have zeros in the lower bits.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import dtype_name
from keras_ether.types import Tensor

if BACKEND == "jax":
    import jax
    import jax.numpy as jnp

# Entries summed at once: few enough for a processor's cache.
CHUNK = 2**18
# Each seed gives another sequence of weights.
SEEDS = (0x243F6A88, 0x85A308D3)
MASK = 0xFFFFFFFF

# Of files of format_version 1 and 2, see `sampled_fingerprint`.
MAX_SAMPLES = 4_096
MAX_PLACES = 2**31 - 1
GOLDEN = 0.6180339887498949


def fingerprint(kernel: Tensor) -> np.ndarray:
    """Digest of a kernel's shape and of all its values.

    Equal values give equal digests on every backend and in every dtype that
    holds them. Values are rounded to float32.

    Args:
        kernel: Tensor, variable or NumPy array of any shape.

    Returns:
        The 32 bytes of a SHA-256, as a uint8 array.
    """
    values = _tensor(kernel)
    here = _on_host(values)
    if here is not None:
        sums = _sums(here)
    elif BACKEND == "jax":
        sums = _sums_of_shards(values)
    else:
        sums = _sums_of_chunks(values)
    return _hash(tuple(kernel.shape), np.array(sums, "<u4"))


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


def sampled_fingerprint(kernel: Tensor) -> np.ndarray:
    """The digest in files of format_version 1 and 2, and in old weights files.

    It depends on all values of a kernel of up to 4,096 entries, and on about
    4,096 values of a larger kernel. It is only used to compare with those
    files.
    """
    values, shape = _tensor(kernel), tuple(kernel.shape)
    size = int(np.prod(shape, dtype="int64"))
    if size > MAX_PLACES:
        # JAX indexes by 32-bit integers.
        rows = _spread(shape[0], min(shape[0], 16))
        values = ops.take(values, rows, axis=0)
        size = size // shape[0] * len(rows)
    if size > MAX_SAMPLES:
        places, view = _spread(size, MAX_SAMPLES), _on_host(values)
        values = (
            # `take` without an axis indexes the flat tensor.
            ops.take(values, places)
            if view is None
            else view.reshape(-1)[places]
        )
    return _hash(shape, ops.convert_to_numpy(ops.cast(values, "float32")))


def _spread(size: int, count: int) -> np.ndarray:
    """Indices below `size`: both ends, and others without a regular step."""
    places = (np.arange(count) * GOLDEN % 1.0 * size).astype("int64")
    places = np.unique([*places, 0, size - 1])
    return places.astype("int32" if size <= MAX_PLACES else "int64")


def _hash(shape: tuple[int, ...], values: np.ndarray) -> np.ndarray:
    digest = hashlib.sha256(repr(shape).encode() + values.tobytes())
    return np.frombuffer(digest.digest(), "uint8")


def _tensor(kernel: Any) -> Any:
    """A NumPy array, or a tensor that shares memory with a variable."""
    if isinstance(kernel, np.ndarray):
        return kernel
    if BACKEND == "jax":
        return getattr(kernel, "value", kernel)
    return ops.stop_gradient(ops.convert_to_tensor(kernel))


def _on_host(values: Any) -> np.ndarray | None:
    """The values as a NumPy array, if that needs no copy of a large array."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values)
    if BACKEND == "jax":
        devices = values.devices()
        is_here = len(devices) == 1 and next(iter(devices)).platform == "cpu"
        # Compiling a program for the shape would take longer than a copy.
        is_here |= values.is_fully_addressable and values.size <= CHUNK
        return np.asarray(values) if is_here else None
    is_bfloat16 = dtype_name(values) == "bfloat16"
    if is_bfloat16:
        # NumPy lacks this dtype, and the package `ml_dtypes` has it.
        values = ops.view(values, "int16")
    try:
        view = np.from_dlpack(values)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        # On an accelerator, or not contiguous on TensorFlow.
        return None
    view = view.view("bfloat16") if is_bfloat16 else view
    return view if view.flags.c_contiguous else None


def _weights(places: Any, seed: int) -> Any:
    """A pseudo-random odd 32-bit number for each index."""
    u = np.uint32
    x = places * u(0x9E3779B1) + u(seed)
    x = (x ^ (x >> u(15))) * u(0x85EBCA77)
    return (x ^ (x >> u(13))) | u(1)


@functools.cache
def _weights_of_chunk(size: int) -> list[np.ndarray]:
    return [_weights(np.arange(size, dtype="uint32"), s) for s in SEEDS]


def _weight_of_start(start: int, seed: int) -> int:
    return int(_weights(np.array([start & MASK], "uint32"), seed)[0])


def _bits(values: np.ndarray) -> np.ndarray:
    """The bits of values as float32."""
    if values.dtype.name == "bfloat16":
        # This takes half the time of a cast.
        return values.view("uint16").astype("uint32") << np.uint32(16)
    return values.astype("float32", copy=False).view("uint32")


def _sums(values: np.ndarray) -> list[int]:
    """The two sums of an array in memory."""
    weights = _weights_of_chunk(CHUNK)
    values, sums = values.reshape(-1), [0, 0]
    for start in range(0, values.size, CHUNK):
        bits = _bits(values[start : start + CHUNK])
        bits = bits ^ (bits >> np.uint32(16))
        for k, seed in enumerate(SEEDS):
            # The fastest sum of products of integers.
            part = np.einsum("i,i->", bits, weights[k][: bits.size])
            sums[k] += int(part) * _weight_of_start(start, seed)
    return [total & MASK for total in sums]


def _sums_of_chunks(values: Tensor) -> list[int]:
    """The two sums, on the device of a tensor of TensorFlow or PyTorch."""
    values, sums = ops.reshape(values, (-1,)), [0, 0]
    # Not every device computes with unsigned integers.
    weights = [
        ops.convert_to_tensor(weights.astype("int64"))
        for weights in _weights_of_chunk(CHUNK)
    ]
    for start in range(0, int(values.shape[0]), CHUNK):
        chunk = ops.cast(values[start : start + CHUNK], "float32")
        bits = ops.cast(ops.view(chunk, "int32"), "int64") & MASK
        bits = bits ^ ops.right_shift(bits, 16)
        for k, seed in enumerate(SEEDS):
            part = ops.sum(bits * weights[k][: bits.shape[0]]) & MASK
            sums[k] = (sums[k] + part * _weight_of_start(start, seed)) & MASK
    return [int(total) for total in sums]


if BACKEND == "jax":

    @jax.jit
    def _sums_of_shards(values: Tensor) -> list[Tensor]:
        """The two sums in one pass, each device over its own shards."""
        bits = jax.lax.bitcast_convert_type(
            values.astype("float32"), jnp.uint32
        )
        bits = bits ^ (bits >> 16)
        places, stride = jnp.zeros(values.shape, "uint32"), 1
        for axis in reversed(range(values.ndim)):
            iota = jax.lax.broadcasted_iota("uint32", values.shape, axis)
            places = places + iota * np.uint32(stride & MASK)
            stride *= values.shape[axis]
        inner = places & np.uint32(CHUNK - 1)
        return [
            jnp.sum(
                bits * _weights(inner, seed) * _weights(places - inner, seed),
                dtype="uint32",
            )
            for seed in SEEDS
        ]
