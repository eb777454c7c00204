import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import backend


@pytest.mark.parametrize("columns", [1, 15, 16, 40])
def test_transposed_product_equals_numpy(columns, rng):
    s, x = (
        rng.standard_normal((50, width)).astype("float32")
        for width in (columns, 7)
    )
    found = backend.transposed_product(ops.array(s), ops.array(x))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), s.T @ x, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_variable_becomes_a_tensor(dtype):
    variable = keras.Variable(np.ones((2, 3), "float32"))
    found = backend.tensor(variable, dtype)
    assert isinstance(found, type(ops.array([1.0])))
    assert backend.dtype_name(found) == (dtype or "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(found), np.ones((2, 3)))


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_float32_casts_what_is_not(dtype):
    for array in (np.ones(2, dtype), ops.cast(np.ones(2), dtype)):
        y = backend.float32(array)
        assert backend.is_float32(y)
        np.testing.assert_array_equal(ops.convert_to_numpy(y), [1.0, 1.0])
