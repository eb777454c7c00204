import hashlib

import numpy as np
import pytest
from keras import ops

from keras_ether.fingerprint import fingerprint


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
