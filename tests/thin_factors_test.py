import keras
import numpy as np
import pytest
from keras import ops

from keras_ether import thin_factors
from tests import backends

# Written as one matrix, as one for each group of blocks, and, where no number
# of blocks that fits divides theirs, gone through block by block.
ONE = [(1, 1, 6), (4, 1, 5), (3, 2, 4), (16, 1, 3)]
GROUPS = [(20, 1, 3), (12, 2, 4), (24, 1, 2)]
SINGLE = [(17, 1, 3), (11, 2, 4)]


def block_diagonal(factor):
    blocks, k, width = factor.shape
    matrix = np.zeros((blocks * k, blocks * width))
    for i, block in enumerate(factor):
        rows = slice(i * k, (i + 1) * k)
        matrix[rows, i * width : (i + 1) * width] = block
    return matrix


@pytest.fixture(params=ONE + GROUPS + SINGLE)
def factor(request, rng):
    return rng.standard_normal(request.param).astype("float32")


def arranged(factor):
    return thin_factors.arrange(ops.array(factor))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def close(found, expected):
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ONE)
def test_few_rows_are_one_matrix(shape, rng):
    factor = rng.standard_normal(shape).astype("float32")
    found = numpy(arranged(factor))
    np.testing.assert_array_equal(found, block_diagonal(factor))


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((20, 1, 3), 2), ((12, 2, 4), 2), ((24, 1, 2), 2), ((17, 1, 3), 17)],
)
def test_many_rows_are_a_matrix_for_each_group_of_blocks(shape, groups, rng):
    factor = rng.standard_normal(shape).astype("float32")
    if keras.backend.backend() != "torch":
        groups = len(factor)
    expected = [block_diagonal(f) for f in np.split(factor, groups)]
    np.testing.assert_array_equal(numpy(arranged(factor)), np.stack(expected))


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
    rows = thin_factors.kernel_rows(ops.array(factor), ops.array(right))
    close(rows, matrix @ right)


def test_gradients_are_the_blocks_of_whole_products(factor, rng):
    k, width = block_diagonal(factor).shape
    x, s, right, upstream = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((7, width), (7, k), (width, 9), (k, 9))
    )
    whole = thin_factors.contract(ops.array(s), ops.array(x), arranged(factor))
    close(
        thin_factors.arrange_gradient(whole, ops.array(factor)),
        blocks_of(s.T @ x, factor),
    )
    found = thin_factors.kernel_rows_gradient(
        ops.array(upstream), ops.array(right), ops.array(factor)
    )
    close(found, blocks_of(upstream @ right.T, factor))


def blocks_of(matrix, factor):
    blocks, k, width = factor.shape
    matrix = matrix.reshape(blocks, k, blocks, width)
    return np.stack([matrix[i, :, i] for i in range(blocks)])


def test_arranging_is_differentiated_by_its_gradient(factor, rng):
    weights = rng.standard_normal(arranged(factor).shape).astype("float32")

    def loss(factor):
        return ops.sum(thin_factors.arrange(factor) * ops.array(weights))

    (expected,) = backends.gradients(loss, [factor])
    found = thin_factors.arrange_gradient(ops.array(weights), ops.array(factor))
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-6)
