import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import dense_oracle
from tests import kinds
from tests import models

METHODS = ["ether", "ether+", "oft", "naive"]


def matrices(method, vectors, side, experts):
    """One explicit matrix for each group, or the identity."""
    matrix = dense_oracle.side_matrix(method, vectors, side)
    if matrix is None:
        return None
    width = len(matrix) // experts
    return [
        matrix[i * width : (i + 1) * width, i * width : (i + 1) * width]
        for i in range(experts)
    ]


def effective_kernel(layer, method, vectors):
    """The folded kernel, by explicit matrices at each place of the window."""
    kernel = np.array(models.values([layer.base_kernel])[0], "float64")
    transposed = type(layer).__name__.endswith("Transpose")
    if transposed:
        kernel = np.swapaxes(kernel, -1, -2)
    groups = getattr(layer, "groups", 1)
    parts = np.split(kernel, groups, axis=-1)
    h = matrices(method, vectors, "input", groups)
    g = matrices(method, vectors, "output", groups)
    if h is not None:
        parts = [
            np.einsum("cd,...df->...cf", *pair)
            for pair in zip(h, parts, strict=True)
        ]
    if g is not None:
        parts = [
            np.einsum("...df,fg->...dg", *pair)
            for pair in zip(parts, g, strict=True)
        ]
    kernel = np.concatenate(parts, axis=-1)
    return np.swapaxes(kernel, -1, -2) if transposed else kernel


@pytest.mark.by_turns
@pytest.mark.parametrize("side", ["input", "output", "both"])
@pytest.mark.parametrize("kind", kinds.CONVOLUTIONS)
def test_call_and_kernel_are_those_of_explicit_matrices(kind, side, rng):
    layer, plain = kinds.layer_of(kind), kinds.layer_of(kind)
    x = kinds.inputs_of(kind, rng)
    layer(x), plain(x)
    for method in METHODS:
        keras_ether.apply(layer, method=method, side=side, rank_blocks=2)
        vectors = kinds.randomize(layer, rng)
        expected = effective_kernel(layer, method, vectors)
        plain.kernel.assign(expected)
        np.testing.assert_allclose(
            ops.convert_to_numpy(layer.kernel), expected, rtol=1e-3, atol=1e-4
        )
        for training in (False, True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(layer(x, training=training)),
                models.call(plain, x),
                rtol=1e-3,
                atol=1e-4,
            )
        keras_ether.remove(layer)


@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_every_group_has_blocks_of_its_own(method):
    layer = kinds.layer_of("groups")
    layer.build((None, 3, 3, 8))
    report = keras_ether.plan(
        layer, method=method, targets="all", rank_blocks=2, print_fn=str
    )
    assert report.trainable == (8 if method == "ether" else 2 * (8 + 8))


def test_blocks_must_divide_each_group():
    layer = kinds.layer_of("groups")
    layer.build((None, 3, 3, 8))
    with pytest.raises(ValueError, match=r"'target'.*d=4.*f=4.*\[1, 2\]"):
        keras_ether.apply(layer, rank_blocks=8)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize(
    "kind", ["conv2d", "conv1d transposed", "conv2d transposed"]
)
def test_16_bits(kind, policy, rng):
    if (kind, keras.backend.backend()) == ("conv2d transposed", "tensorflow"):
        pytest.skip("channels first in 16 bits, not on every processor there")
    layer = kinds.LAYERS[kind][0](dtype=policy)
    x = kinds.inputs_of(kind, rng)
    base = ops.convert_to_numpy(ops.cast(layer(x), "float32"))
    keras_ether.apply(layer, method="ether+", rank_blocks=2, seed=0)
    started = layer(x)
    assert keras.backend.standardize_dtype(started.dtype) == "bfloat16"
    started = ops.convert_to_numpy(ops.cast(started, "float32"))
    np.testing.assert_array_equal(started, base)
    for vector in layer.ether.vectors.values():
        assert vector.dtype == "float32"
