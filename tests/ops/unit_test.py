import numpy as np
import pytest
from keras import ops

from keras_ether.ops.unit import unit
from tests import backends
from tests import dense_oracle


@pytest.mark.parametrize("leading", [(), (2,)])
def test_unit_has_unit_length_and_keeps_zeros(leading, rng):
    u = rng.standard_normal((*leading, 3, 5)).astype("float32")
    u[..., 1, :] = 0
    rows = [dense_oracle.unit(row) for row in u.reshape(-1, 5)]
    np.testing.assert_allclose(
        ops.convert_to_numpy(unit(u)), np.stack(rows).reshape(u.shape), 1e-5
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_gradient_is_that_of_the_formula(size, rng):
    u = (size * rng.standard_normal((2, 3, 5))).astype("float32")
    u[0, 1] = 0
    upstream = rng.standard_normal(u.shape).astype("float32")

    def loss(u):
        return ops.sum(unit(u) * ops.array(upstream))

    (found,) = backends.gradients(loss, [u])
    length = np.linalg.norm(u, axis=-1, keepdims=True)
    length[length == 0] = np.inf
    e = u / length
    inner = (e * upstream).sum(-1, keepdims=True)
    expected = (upstream - e * inner) / length
    # Through the formula itself, which has a slope of 1 at zero.
    assert np.isfinite(found).all()
    found, expected = np.delete(found, 1, 1), np.delete(expected, 1, 1)
    np.testing.assert_allclose(size * found, size * expected, 2e-4, 1e-5)
