import hashlib
import re
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import fingerprint as module
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import fingerprint_all
from keras_ether.ops.fingerprint import sampled_fingerprint

SHAPES = [(), (1,), (3, 4), (0, 3), (2, 3, 5, 7), (40, 70), (1027,)]


def number(place, seed):
    """The weight of a place, in Python's integers."""
    x = (place * 0x9E3779B1 + seed) % 2**32
    x = (x ^ (x >> 15)) * 0x85EBCA77 % 2**32
    return (x ^ (x >> 13)) | 1


def expected_sums(kernel):
    """The sums of the module's docstring, in Python's integers."""
    sums = [0, 0]
    bits = kernel.astype("float32").view("uint32").reshape(-1).tolist()
    for i, b in enumerate(bits):
        inner = i % module.CHUNK
        for k, seed in enumerate(module.SEEDS):
            weight = number(i - inner, seed) * number(inner, seed)
            sums[k] += weight * (b ^ (b >> 16))
    return [total % 2**32 for total in sums]


def expected_digest(kernel):
    sums = np.array(expected_sums(kernel), "<u4")
    text = repr(kernel.shape).encode() + sums.tobytes()
    return hashlib.sha256(text).digest()


def on_device(monkeypatch):
    """As where NumPy can't see the memory of a tensor."""
    monkeypatch.setattr(module, "_on_host", lambda values: None)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_formula_on_every_backend(shape, rng, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1024)
    kernel = rng.standard_normal(shape).astype("float32")
    expected = expected_digest(kernel)
    assert fingerprint(kernel).tobytes() == expected
    assert fingerprint(ops.array(kernel)).tobytes() == expected
    on_device(monkeypatch)
    assert fingerprint(ops.array(kernel)).tobytes() == expected


# Computed once; a change here makes files of before those of another base.
SMALL = "8e600233"


@pytest.mark.once
def test_digest_of_files_stays():
    kernel = np.arange(12, dtype="float32").reshape(3, 4)
    assert fingerprint(kernel).tobytes().hex()[:8] == SMALL


@pytest.mark.parametrize("shape", [(3, 4), (400, 700)])
def test_changes_with_every_value_and_with_the_shape(shape, rng):
    kernel = rng.standard_normal(shape).astype("float32")
    first = fingerprint(ops.array(kernel))
    assert first.shape == (32,)
    assert first.dtype == "uint8"
    for place in rng.choice(kernel.size, 10, replace=False):
        other = kernel.copy()
        other.flat[place] = np.nextafter(other.flat[place], np.float32(9))
        assert not np.array_equal(fingerprint(ops.array(other)), first)
    assert not np.array_equal(fingerprint(ops.array(kernel.T)), first)
    reshaped = ops.array(kernel.reshape(-1))
    assert not np.array_equal(fingerprint(reshaped), first)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_exchanged_values_rows_and_signs_are_seen(dtype, rng):
    kernel = (rng.standard_normal((600, 500)) * 20).astype(dtype)
    digests = {fingerprint(kernel).tobytes()}
    changes = 0
    for _ in range(40):
        a, b = rng.choice(600, 2, replace=False)
        c, d = rng.choice(500, 2, replace=False)
        rows, columns, square = kernel.copy(), kernel.copy(), kernel.copy()
        rows[[a, b]] = rows[[b, a]]
        columns[:, [c, d]] = columns[:, [d, c]]
        # Two added, two taken away, at the corners of a rectangle.
        square[a, c], square[b, d] = kernel[a, d], kernel[b, c]
        square[a, d], square[b, c] = kernel[a, c], kernel[b, d]
        for changed in (rows, columns, square, -rows):
            if not np.array_equal(changed, kernel):
                changes += 1
                digests.add(fingerprint(changed).tobytes())
    assert len(digests) == changes + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "bool"])
def test_equal_values_are_equal_in_every_dtype(dtype, rng, monkeypatch):
    kernel = ops.cast(10 * rng.standard_normal((30, 20)), dtype)
    first = fingerprint(kernel)
    whole = ops.cast(kernel, "float32")
    np.testing.assert_array_equal(first, fingerprint(whole))
    assert first.tobytes() == expected_digest(ops.convert_to_numpy(whole))
    variable = keras.Variable(whole, dtype="float32")
    np.testing.assert_array_equal(first, fingerprint(variable))
    on_device(monkeypatch)
    np.testing.assert_array_equal(first, fingerprint(kernel))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_second_copy_is_made(dtype, monkeypatch):
    variable = keras.Variable(np.ones((2_048, 2_048)), dtype=dtype)
    fingerprint(variable)
    tracemalloc.start()
    fingerprint(variable)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The weights of a chunk, and its bits.
    assert peak < 6 * 4 * module.CHUNK < 2_048 * 2_048 * 2


def test_shards_on_several_devices():
    if keras.backend.backend() != "jax":
        pytest.skip("JAX's arrays")
    import jax

    devices = np.array(jax.devices())
    if len(devices) < 2:
        pytest.skip("one device")
    mesh = jax.sharding.Mesh(devices[:2], ("a",))
    kernel = np.arange(600 * 500, dtype="float32").reshape(600, 500)
    for axes in (("a", None), (None, "a")):
        spec = jax.sharding.PartitionSpec(*axes)
        sharding = jax.sharding.NamedSharding(mesh, spec)
        shards = jax.device_put(kernel, sharding)
        np.testing.assert_array_equal(fingerprint(shards), fingerprint(kernel))


def test_variables_together_have_names_and_no_order():
    a, b = ops.ones((2, 3)), ops.zeros((3,))
    digest = fingerprint_all({"a": a, "b": b})
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert fingerprint_all({"b": b, "a": a}) == digest
    assert fingerprint_all({"a": a, "c": b}) != digest
    assert fingerprint_all({"a": b, "b": a}) != digest
    assert fingerprint_all({"a": a}) != digest


# Digests in files of format_version 1 and 2.


def large():
    return np.arange(300 * 400, dtype="float32").reshape(300, 400)


def test_sampled_digest_of_old_files(monkeypatch):
    kernel = np.arange(12, dtype="float32").reshape(3, 4)
    expected = hashlib.sha256(b"(3, 4)" + kernel.tobytes()).digest()
    assert sampled_fingerprint(ops.array(kernel)).tobytes() == expected
    found = sampled_fingerprint(ops.array(large()))
    assert found.tobytes().hex()[:8] == "8790e5f7"
    on_device(monkeypatch)
    found = sampled_fingerprint(ops.array(large()))
    assert found.tobytes().hex()[:8] == "8790e5f7"


def test_sampled_digest_of_a_tensor_too_large_for_32_bits(monkeypatch):
    monkeypatch.setattr(module, "MAX_PLACES", 100_000)
    found = sampled_fingerprint(ops.array(large()))
    assert found.tobytes().hex()[:8] == "ff616e33"
