import numpy as np
import pytest
from keras import ops

from keras_ether import quick_ops


def test_reshape_and_transpose_equal_keras():
    x = np.arange(6.0, dtype="float32").reshape(2, 3)
    for array in (x, ops.array(x)):
        y = quick_ops.reshape(array, (3, -1))
        np.testing.assert_array_equal(ops.convert_to_numpy(y), x.reshape(3, 2))
        y = quick_ops.transpose(array)
        np.testing.assert_array_equal(ops.convert_to_numpy(y), x.T)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 1, 4, 3)])
def test_products_equal_numpy(shape, rng):
    x = rng.standard_normal((*shape[:-1], 5)).astype("float32")
    rows = rng.standard_normal(shape).astype("float32")
    matrix = rng.standard_normal((3, 5)).astype("float32")
    for found, expected in (
        (quick_ops.matmul(ops.array(rows), ops.array(matrix)), rows @ matrix),
        (
            quick_ops.add_product(*map(ops.array, (x, rows, matrix))),
            x + rows @ matrix,
        ),
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(found), expected, rtol=1e-5, atol=1e-5
        )


def test_adding_nothing_leaves_every_bit(rng):
    x = ops.array(rng.standard_normal((2, 4, 5)), "float32")
    y = quick_ops.add_product(x, ops.ones((2, 4, 3)), ops.zeros((3, 5)))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (x, y)))


def test_float32_leaves_float32_as_it_is():
    x = ops.ones((2,), "float32")
    assert quick_ops.float32(x) is x


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_float32_casts_what_is_not(dtype):
    for array in (np.ones(2, dtype), ops.cast(np.ones(2), dtype)):
        y = quick_ops.float32(array)
        assert quick_ops.is_float32(y)
        np.testing.assert_array_equal(ops.convert_to_numpy(y), [1.0, 1.0])
