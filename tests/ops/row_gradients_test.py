"""Gradients of stacks, of which every row belongs to another adapter."""

import numpy as np
from keras import ops

from keras_ether.ops import row_gradients


def test_share_of_own():
    ids = ops.convert_to_tensor(np.array([2, 5, 2, 0, 2, 5], "int32"))
    found = ops.convert_to_numpy(row_gradients.share_of_own(ids))
    np.testing.assert_allclose(found, [2, 3, 2, 0, 2, 3])


def test_each_row_is_clipped_by_its_own_norm(rng):
    a = rng.standard_normal((3, 2, 4)).astype("float32")
    b = rng.standard_normal((3, 5)).astype("float32")
    a[1], b[1] = a[1] * 1e-3, b[1] * 1e-3
    a[2], b[2] = 0, 0
    found = row_gradients.clip_rows(
        [ops.convert_to_tensor(a), ops.convert_to_tensor(b)], 0.5
    )
    for x, y in zip((a, b), map(ops.convert_to_numpy, found), strict=True):
        norm = np.sqrt((a[0] ** 2).sum() + (b[0] ** 2).sum())
        np.testing.assert_allclose(y[0], 0.5 * x[0] / norm, rtol=1e-5)
        np.testing.assert_array_equal(y[1:], x[1:])
