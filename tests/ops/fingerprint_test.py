import hashlib
import re

import numpy as np
import pytest
from keras import ops

from keras_ether.ops import fingerprint as module
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.fingerprint import fingerprint_all


@pytest.mark.parametrize("shape", [(3, 4), (400, 300)])
def test_changes_with_a_sampled_value_and_with_the_shape(shape, rng):
    kernel = rng.standard_normal(shape).astype("float32")
    first = fingerprint(ops.array(kernel))
    assert first.shape == (32,)
    assert first.dtype == "uint8"
    np.testing.assert_array_equal(fingerprint(ops.array(kernel)), first)
    other = kernel.copy()
    other[-1, -1] += 1e-3
    assert not np.array_equal(fingerprint(ops.array(other)), first)
    assert not np.array_equal(fingerprint(ops.array(kernel.T)), first)
    reshaped = ops.array(kernel.reshape(-1))
    assert not np.array_equal(fingerprint(reshaped), first)


def test_equal_values_are_equal_in_every_dtype(rng):
    kernel = ops.cast(rng.standard_normal((8, 8)), "bfloat16")
    np.testing.assert_array_equal(
        fingerprint(kernel), fingerprint(ops.cast(kernel, "float32"))
    )


def test_is_the_same_on_every_backend():
    kernel = np.arange(12, dtype="float32").reshape(3, 4)
    expected = hashlib.sha256(b"(3, 4)" + kernel.tobytes()).digest()
    assert fingerprint(ops.array(kernel)).tobytes() == expected


# Computed once; a change here makes files of before those of another base.
LARGE = "8790e5f7"


def large():
    return np.arange(300 * 400, dtype="float32").reshape(300, 400)


def test_large_kernel_is_sampled_alike_on_every_backend(monkeypatch):
    found = fingerprint(ops.array(large()))
    assert found.tobytes().hex()[:8] == LARGE

    def no_view(tensor):
        raise BufferError("it is on an accelerator")

    monkeypatch.setattr(np, "from_dlpack", no_view)
    np.testing.assert_array_equal(fingerprint(ops.array(large())), found)
    np.testing.assert_array_equal(
        fingerprint(ops.cast(large() // 1024, "bfloat16")),
        fingerprint(ops.cast(large() // 1024, "float32")),
    )


def test_samples_lie_in_every_row_and_column():
    places = module._spread(300 * 400, module.MAX_SAMPLES)
    assert len(places) <= module.MAX_SAMPLES + 2
    assert set(places // 400) == set(range(300))
    assert set(places % 400) == set(range(400))


def test_tensor_too_large_for_places_of_32_bits(monkeypatch):
    whole = fingerprint(ops.array(large()))
    monkeypatch.setattr(module, "MAX_PLACES", 100_000)
    rows = fingerprint(ops.array(large()))
    assert not np.array_equal(rows, whole)
    changed = large()
    changed[-1, -1] = -1
    assert not np.array_equal(fingerprint(ops.array(changed)), rows)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool"])
def test_codes_of_quantized_kernels(dtype):
    codes = (large() % 2).astype(dtype)
    first = fingerprint(ops.array(codes))
    codes[-1, -1] = 1 - codes[-1, -1]
    assert not np.array_equal(fingerprint(ops.array(codes)), first)


def test_variables_together_have_names_and_no_order():
    a, b = ops.ones((2, 3)), ops.zeros((3,))
    digest = fingerprint_all({"a": a, "b": b})
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert fingerprint_all({"b": b, "a": a}) == digest
    assert fingerprint_all({"a": a, "c": b}) != digest
    assert fingerprint_all({"a": b, "b": a}) != digest
    assert fingerprint_all({"a": a}) != digest
