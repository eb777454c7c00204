import numpy as np
import pytest
from keras import ops

from keras_ether.ops.conv_view import ConvView
from tests import dense_oracle

# View, shape of the kernel, (e, d, f).
CASES = {
    "conv1d": (ConvView(), (3, 4, 6), (1, 4, 6)),
    "conv2d": (ConvView(), (3, 2, 4, 6), (1, 4, 6)),
    "groups": (ConvView(groups=2), (3, 2, 4, 6), (2, 4, 3)),
    "transposed": (ConvView(transposed=True), (3, 2, 6, 4), (1, 4, 6)),
}


def times(matrix):
    return lambda rows: ops.matmul(rows, ops.array(matrix, "float32"))


@pytest.mark.parametrize("case", CASES)
def test_sizes(case):
    view, kernel_shape, sizes = CASES[case]
    assert view.sizes(kernel_shape) == sizes


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_transformed_at_every_place_and_in_every_group(case, rng):
    view, kernel_shape, (e, d, f) = CASES[case]
    kernel = rng.standard_normal(kernel_shape).astype("float32")
    h = rng.standard_normal((e, d, d))
    g = rng.standard_normal((e, f, f))
    # A group's matrix at a place, by its indices.
    expected = np.empty(kernel_shape)
    for place in np.ndindex(kernel_shape[:-2]):
        for group in range(e):
            if view.transposed:
                expected[place] = (h[0] @ kernel[place].T @ g[0]).T
            else:
                columns = slice(group * f, (group + 1) * f)
                expected[place][:, columns] = (
                    h[group] @ kernel[place][:, columns] @ g[group]
                )
    folded = view.map_kernel_inputs(
        times(dense_oracle.block_diagonal(h).T), ops.array(kernel)
    )
    folded = view.map_kernel_outputs(
        times(dense_oracle.block_diagonal(g)), folded
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(folded), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("channels_first", [False, True])
def test_channels_are_found_on_either_side(channels_first, rng):
    view = ConvView(channels_first=channels_first)
    x = rng.standard_normal((2, 4, 3, 5)).astype("float32")
    matrix = rng.standard_normal((4, 4) if channels_first else (5, 5))
    label = "bcxy,cd->bdxy" if channels_first else "bxyc,cd->bxyd"
    for mapped in (view.map_inputs, view.map_outputs):
        np.testing.assert_allclose(
            ops.convert_to_numpy(mapped(times(matrix), ops.array(x))),
            np.einsum(label, x, matrix),
            atol=1e-4,
        )
