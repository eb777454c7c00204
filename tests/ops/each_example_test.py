"""Products with factors of each example's own, against explicit matrices."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import each_example
from tests import backends


def blocks_of(left, right):
    """One example's `diag(I + leftᵀ right)`, in float64."""
    n, _, width = left.shape
    matrix = np.eye(n * width)
    for i in range(n):
        part = slice(i * width, (i + 1) * width)
        matrix[part, part] += left[i].T.astype("float64") @ right[i]
    return matrix


@pytest.mark.by_turns
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("blocks", "k", "middle"), [(1, 1, ()), (2, 2, (5,)), (12, 2, (2, 3))]
)
@pytest.mark.parametrize(
    ("dtype", "error"), [("float32", 1e-4), ("bfloat16", 0.2)]
)
def test_multiply_each(rng, blocks, k, middle, times, dtype, error):
    left, right = rng.standard_normal((2, 4, blocks, k, 3)).astype("float32")
    x = rng.standard_normal((4 * times, *middle, blocks * 3)).astype("float32")
    found = each_example.multiply_each(
        ops.convert_to_tensor(x, dtype),
        *map(ops.convert_to_tensor, (left, right)),
    )
    found = ops.convert_to_numpy(ops.cast(found, "float32"))
    for i, row in enumerate(x):
        matrix = blocks_of(left[i // times], right[i // times])
        np.testing.assert_allclose(found[i], row @ matrix, atol=error)


def test_zero_factors_are_the_identity_to_the_bit(rng):
    x = rng.standard_normal((4, 5, 6)).astype("float32")
    zeros = ops.zeros((4, 2, 2, 3))
    found = each_example.multiply_each(ops.convert_to_tensor(x), zeros, zeros)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), x)


def test_gradients_reach_their_own_example(rng):
    left, right = rng.standard_normal((2, 3, 2, 1, 3)).astype("float32")
    x = rng.standard_normal((3, 4, 6)).astype("float32")

    def of_example_1(left, right):
        y = each_example.multiply_each(ops.convert_to_tensor(x), left, right)
        return ops.sum(ops.square(y[1]))

    def oracle(left, right):
        return np.sum((x[1] @ blocks_of(left[1], right[1])) ** 2)

    found = backends.gradients(of_example_1, (left, right))
    expected = backends.finite_differences(oracle, (left, right))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        assert not a[[0, 2]].any()


def test_matmul_each(rng):
    x = rng.standard_normal((4, 5, 3)).astype("float32")
    matrices = rng.standard_normal((2, 3, 6)).astype("float32")
    biases = rng.standard_normal((2, 6)).astype("float32")
    found = ops.convert_to_numpy(
        each_example.matmul_each(
            *map(ops.convert_to_tensor, (x, matrices, biases))
        )
    )
    for i in range(4):
        expected = x[i] @ matrices[i // 2] + biases[i // 2]
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("blocks", "k"), [(1, 1), (2, 2)])
def test_add_beside_each(rng, blocks, k, times):
    """The product with inputs that each example's own blocks transform."""
    left, right = rng.standard_normal((2, 3, blocks, k, 4)).astype("float32")
    x = rng.standard_normal((3 * times * 5, blocks * 4)).astype("float32")
    kernel = rng.standard_normal((blocks * 4, 6)).astype("float32")
    found = each_example.add_unfolded_each(
        *map(ops.convert_to_tensor, (x @ kernel, x, kernel, left, right))
    )
    found = ops.convert_to_numpy(found)
    for i, row in enumerate(x):
        example = i // (times * 5)
        matrix = blocks_of(left[example], right[example])
        np.testing.assert_allclose(found[i], row @ matrix @ kernel, atol=1e-3)


def test_zero_factors_leave_a_product_as_it_is(rng):
    x = rng.standard_normal((10, 4)).astype("float32")
    kernel = rng.standard_normal((4, 3)).astype("float32")
    zeros = ops.zeros((2, 2, 1, 2))
    y = rng.standard_normal((10, 3)).astype("float32")
    found = each_example.add_unfolded_each(
        *map(ops.convert_to_tensor, (y.copy(), x, kernel)), zeros, zeros
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(found), y)


def test_a_row_is_written_and_no_other(rng):
    values = [rng.standard_normal(shape) for shape in ((5, 3), (5, 2, 4))]
    variables = [keras.Variable(v, dtype="float32") for v in values]
    expected = [np.array(ops.convert_to_numpy(v)) for v in variables]
    rows = [rng.standard_normal(v.shape[1:]).astype("float32") for v in values]
    each_example.set_row(variables, 3, rows)
    for variable, value, row in zip(variables, expected, rows, strict=True):
        value[3] = row
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Other backends write in place."
)
def test_rows_are_written_without_a_copy_but_not_under_a_view(rng):
    variable = keras.Variable(rng.standard_normal((5, 3)), dtype="float32")
    row = [np.zeros(3, "float32")]
    view = ops.convert_to_numpy(variable)
    before = np.array(view)
    each_example.set_row([variable], 3, row)
    np.testing.assert_array_equal(view, before)
    array = variable.value
    each_example.set_row([variable], 4, row)
    assert array.is_deleted()
