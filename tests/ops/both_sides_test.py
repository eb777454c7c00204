"""The term of a kernel that is transformed on both sides."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.ops import both_sides
from keras_ether.ops.block_diagonal import arrange
from tests import backends
from tests import dense_oracle


def draw(blocks, k, rng):
    """A kernel, and factors `left`, `right`, `m`, `t` of blocks of it."""
    d, f = 12, 20
    n, m = blocks
    shapes = [(d, f), *[(n, k, d // n)] * 2, *[(m, k, f // m)] * 2]
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def term(kernel, left, right, m, t):
    left, right, m, t = map(ops.convert_to_tensor, (left, right, m, t))
    kernel = ops.convert_to_tensor(kernel)
    return both_sides.term(kernel, arrange(left), right, m, arrange(t))


BLOCKS = pytest.mark.parametrize("blocks", [(1, 1), (2, 4), (4, 1)])
ROWS = pytest.mark.parametrize("k", [1, 2])


@BLOCKS
@ROWS
def test_equals_explicit_matrices(blocks, k, rng):
    kernel, left, right, m, t = draw(blocks, k, rng)
    h, g = (
        np.eye(a.shape[0] * a.shape[2])
        + dense_oracle.block_diagonal(
            [p.T.astype("float64") @ q for p, q in zip(a, b, strict=True)]
        )
        for a, b in ((left, right), (m, t))
    )
    p, q = term(kernel, left, right, m, t)
    found = ops.convert_to_numpy(ops.matmul(ops.transpose(p), q))
    np.testing.assert_allclose(found, h @ kernel @ g - kernel, atol=1e-3)


@BLOCKS
@ROWS
def test_gradients_are_those_of_plain_operations(blocks, k, rng):
    arrays = draw(blocks, k, rng)
    p, q = map(ops.convert_to_numpy, term(*arrays))
    weights = [rng.standard_normal(a.shape).astype("float32") for a in (p, q)]

    def loss(function):
        def value(*arrays):
            return sum(
                ops.sum(a * ops.array(w))
                for a, w in zip(function(*arrays), weights, strict=True)
            )

        return value

    def plain(kernel, left, right, m, t):
        return both_sides._plain(kernel, arrange(left), right, m, arrange(t))

    found = backends.gradients(loss(term), arrays)
    expected = backends.gradients(loss(plain), arrays)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="of eager PyTorch"
)
def test_second_derivative(rng):
    import torch

    arrays = [torch.tensor(a, requires_grad=True) for a in draw((2, 4), 2, rng)]

    def plain(kernel, left, right, m, t):
        return both_sides._plain(kernel, arrange(left), right, m, arrange(t))

    derivatives = []
    for function in (term, plain):
        loss = sum((a**2).sum() for a in function(*arrays))
        first = torch.autograd.grad(loss, arrays, create_graph=True)
        total = sum(g.sum() for g in first)
        derivatives.append(torch.autograd.grad(total, arrays))
    torch.testing.assert_close(*derivatives, rtol=1e-4, atol=1e-3)
