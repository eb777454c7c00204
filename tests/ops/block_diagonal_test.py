import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import block_diagonal
from tests import backends

# Written as one matrix, as one for each group of blocks, and, where no number
# of blocks that fits divides theirs, gone through block by block.
ONE = [(1, 1, 6), (4, 1, 5), (3, 2, 4), (16, 1, 3)]
GROUPS = [(20, 1, 3), (12, 2, 4), (24, 1, 2)]
SINGLE = [(17, 1, 3), (11, 2, 4)]


def dense(factor):
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
    return block_diagonal.arrange(ops.array(factor))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def close(found, expected):
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ONE)
def test_few_rows_are_one_matrix(shape, rng):
    factor = rng.standard_normal(shape).astype("float32")
    found = numpy(arranged(factor))
    np.testing.assert_array_equal(found, dense(factor))


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((20, 1, 3), 2), ((12, 2, 4), 2), ((24, 1, 2), 2), ((17, 1, 3), 17)],
)
def test_many_rows_are_a_matrix_for_each_group_of_blocks(shape, groups, rng):
    factor = rng.standard_normal(shape).astype("float32")
    if keras.backend.backend() != "torch":
        groups = len(factor)
    expected = [dense(f) for f in np.split(factor, groups)]
    np.testing.assert_array_equal(numpy(arranged(factor)), np.stack(expected))


def test_products_equal_block_diagonal_matrices(factor, rng):
    matrix = dense(factor)
    k, width = matrix.shape
    a = arranged(factor)
    x, s, right = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((7, width), (7, k), (width, 9))
    )
    close(block_diagonal.project(ops.array(x), a), x @ matrix.T)
    close(block_diagonal.spread(ops.array(s), a), s @ matrix)
    added = block_diagonal.add_spread(ops.array(x), ops.array(s), a)
    close(added, x + s @ matrix)
    rows = block_diagonal.kernel_rows(ops.array(factor), ops.array(right))
    close(rows, matrix @ right)


def blocks_of(matrix, factor):
    blocks, k, width = factor.shape
    matrix = matrix.reshape(blocks, k, blocks, width)
    return np.stack([matrix[i, :, i] for i in range(blocks)])


def test_arranging_takes_gradients_from_the_diagonal_blocks(factor, rng):
    whole = rng.standard_normal(dense(factor).shape)
    whole = whole.astype("float32")

    def loss(factor):
        product = block_diagonal.kernel_rows(factor, ops.eye(whole.shape[1]))
        return ops.sum(product * ops.array(whole))

    (found,) = backends.gradients(loss, [factor])
    np.testing.assert_allclose(found, blocks_of(whole, factor), rtol=1e-6)
