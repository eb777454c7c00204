import numpy as np
import pytest
from keras import ops

from keras_ether import thin_factors
from tests import backends

# The first three are written as block-diagonal matrices, the others gone
# through block by block.
SHAPES = [(1, 1, 6), (4, 1, 5), (3, 2, 4), (20, 1, 3), (10, 2, 4)]


def block_diagonal(factor):
    blocks, k, width = factor.shape
    matrix = np.zeros((blocks * k, blocks * width))
    for i, block in enumerate(factor):
        rows = slice(i * k, (i + 1) * k)
        matrix[rows, i * width : (i + 1) * width] = block
    return matrix


@pytest.fixture(params=SHAPES)
def factor(request, rng):
    return rng.standard_normal(request.param).astype("float32")


def arranged(factor):
    return thin_factors.arrange(ops.array(factor))[0]


def as_factor(gradient, shape):
    """A gradient in the form of `arrange` as a factor again."""
    (found,) = thin_factors.arrange_gradients(shape[0], gradient)
    return numpy(found)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def close(found, expected):
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_few_rows_are_arranged_as_a_matrix(factor):
    rows = factor.shape[0] * factor.shape[1]
    found = numpy(arranged(factor))
    if rows <= thin_factors.MAX_DENSE_ROWS:
        np.testing.assert_array_equal(found, block_diagonal(factor))
    else:
        np.testing.assert_array_equal(found, factor)


def test_products_equal_block_diagonal_matrices(factor, rng):
    matrix = block_diagonal(factor)
    k, width = matrix.shape
    a = arranged(factor)
    x, s, right = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((7, width), (7, k), (width, 9))
    )
    close(thin_factors.project(ops.array(x), a), x @ matrix.T)
    close(thin_factors.spread(ops.array(s), a), s @ matrix)
    added = thin_factors.add_spread(ops.array(x), ops.array(s), a)
    close(added, x + s @ matrix)
    close(thin_factors.matrix_rows(a, ops.array(right)), matrix @ right)


def test_gradients_are_the_blocks_of_whole_products(factor, rng):
    k, width = block_diagonal(factor).shape
    a = arranged(factor)
    x, s, right, upstream = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((7, width), (7, k), (width, 9), (k, 9))
    )
    for found, whole in (
        (thin_factors.contract(ops.array(s), ops.array(x), a), s.T @ x),
        (
            thin_factors.matrix_rows_gradient(
                ops.array(upstream), ops.array(right), a
            ),
            upstream @ right.T,
        ),
    ):
        blocks, k, width = factor.shape
        whole = whole.reshape(blocks, k, blocks, width)
        expected = np.stack([whole[i, :, i] for i in range(blocks)])
        np.testing.assert_allclose(
            as_factor(found, factor.shape), expected, rtol=1e-4, atol=1e-4
        )


def test_products_of_two_factors_equal_block_diagonal_matrices(factor, rng):
    others = rng.standard_normal((2, *factor.shape)).astype("float32")
    a, b, c = (arranged(f) for f in (factor, *others))
    found = thin_factors.add_rows(a, thin_factors.inner(a, b), c)
    a, b, c = (block_diagonal(f) for f in (factor, *others))
    expected = a + a @ b.T @ c
    if len(found.shape) == 3:
        found = block_diagonal(numpy(found))
    close(found, expected)


def test_arranging_is_differentiated_by_its_gradients(factor, rng):
    weights = rng.standard_normal(arranged(factor).shape).astype("float32")

    def loss(factor):
        (a,) = thin_factors.arrange(factor)
        return ops.sum(a * ops.array(weights))

    (expected,) = backends.gradients(loss, [factor])
    found = as_factor(ops.array(weights), factor.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
