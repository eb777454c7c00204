import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import backend


def test_what_moves_numbers_equals_numpy():
    x = np.arange(6.0, dtype="float32").reshape(2, 3)
    blocks = np.arange(24.0, dtype="float32").reshape(2, 3, 2, 2)
    matrices = np.arange(72.0, dtype="float32").reshape(2, 3, 2, 3, 2)
    diagonal = np.zeros_like(matrices)
    for i in range(3):
        diagonal[:, i, :, i] = blocks[:, i]
    for found, expected in (
        (backend.reshape(x, (3, -1)), x.reshape(3, 2)),
        (backend.reshape(ops.array(x), (3, -1)), x.reshape(3, 2)),
        (backend.transpose(x), x.T),
        (backend.transpose(ops.array(x)), x.T),
        (
            backend.concatenate([ops.array(x), ops.array(-x)]),
            np.concatenate([x, -x]),
        ),
        (backend.block_diagonal(ops.array(blocks)), diagonal),
        (
            backend.batch_matmul(ops.array(blocks[0]), ops.array(blocks[1])),
            blocks[0] @ blocks[1],
        ),
        (backend.transpose(ops.array(blocks)), blocks.swapaxes(-1, -2)),
        (backend.swap_first(ops.array(blocks)), blocks.swapaxes(0, 1)),
    ):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


def test_reciprocal_norm_equals_numpy_and_is_one_at_zero(rng):
    x = rng.standard_normal((3, 2, 5)).astype("float32")
    x[1, 0] = 0
    expected = np.linalg.norm(x, axis=-1, keepdims=True)
    expected = 1 / np.where(expected == 0, 1, expected)
    found = backend.reciprocal_norm(ops.array(x))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


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


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 1, 4, 3)])
def test_products_equal_numpy(shape, rng):
    x = rng.standard_normal((*shape[:-1], 5)).astype("float32")
    rows = rng.standard_normal(shape).astype("float32")
    matrix = rng.standard_normal((3, 5)).astype("float32")
    for found, expected in (
        (backend.matmul(ops.array(rows), ops.array(matrix)), rows @ matrix),
        (
            backend.add_product(*map(ops.array, (x, rows, matrix))),
            x + rows @ matrix,
        ),
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(found), expected, rtol=1e-5, atol=1e-5
        )


def test_what_is_added_to_equals_numpy(rng):
    x, y = rng.standard_normal((2, 3, 4)).astype("float32")
    found = backend.add_to(ops.array(x), ops.array(y[0]))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), x + y[0])


def test_adding_nothing_leaves_every_bit(rng):
    x = ops.array(rng.standard_normal((2, 4, 5)), "float32")
    y = backend.add_product(x, ops.ones((2, 4, 3)), ops.zeros((3, 5)))
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (x, y)))


def test_float32_leaves_float32_as_it_is():
    x = ops.ones((2,), "float32")
    assert backend.float32(x) is x


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_float32_casts_what_is_not(dtype):
    for array in (np.ones(2, dtype), ops.cast(np.ones(2), dtype)):
        y = backend.float32(array)
        assert backend.is_float32(y)
        np.testing.assert_array_equal(ops.convert_to_numpy(y), [1.0, 1.0])
