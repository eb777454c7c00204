import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

from keras_ether.methods import baselines
from keras_ether.methods import ether
from keras_ether.ops import reflections
from tests import backends
from tests import dense_oracle

FACTORS = {
    "ether": ether.ether_factors,
    "ether+": ether.ether_plus_factors,
    "oft": baselines.oft_factors,
    "naive": baselines.naive_factors,
}
WEIGHTS = {"ether": 1, "ether+": 2, "oft": 1, "naive": 1}
MATRIX_METHODS = ("oft", "naive")


def draw_weights(method, blocks, width, rng):
    shape = (blocks, width)
    if method in MATRIX_METHODS:
        shape = (blocks, width, width)
    return [
        rng.standard_normal(shape).astype("float32")
        for _ in range(WEIGHTS[method])
    ]


def oracle_matrix(method, weights):
    names = dense_oracle.BLOCKS[method][1]
    vectors = {f"input_{n}": w for n, w in zip(names, weights, strict=True)}
    return dense_oracle.side_matrix(method, vectors, "input")


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


@pytest.mark.parametrize("leading", [(), (2,)])
def test_unit_has_unit_length_and_keeps_zeros(leading, rng):
    u = rng.standard_normal((*leading, 3, 5)).astype("float32")
    u[..., 1, :] = 0
    rows = [dense_oracle.unit(row) for row in u.reshape(-1, 5)]
    expected = np.stack(rows).reshape(u.shape)
    np.testing.assert_allclose(numpy(reflections.unit(u)), expected, 1e-5)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_gradient_of_unit_is_that_of_the_formula(size, rng):
    u = (size * rng.standard_normal((2, 3, 5))).astype("float32")
    u[0, 1] = 0
    upstream = rng.standard_normal(u.shape).astype("float32")

    def loss(u):
        return ops.sum(reflections.unit(u) * ops.array(upstream))

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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("blocks", [1, 4, 36])
@pytest.mark.parametrize("method", FACTORS)
def test_multiply_equals_explicit_matrix(method, blocks, training, rng):
    weights = draw_weights(method, blocks, 3, rng)
    x = rng.standard_normal((2, 5, 3 * blocks)).astype("float32")
    factors = FACTORS[method](*weights)
    y = reflections.multiply(ops.array(x), *factors, training=training)
    assert y.shape == x.shape
    expected = x @ oracle_matrix(method, weights)
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("method", FACTORS)
def test_transpose_equals_transposed_matrix(method, blocks, rng):
    weights = draw_weights(method, blocks, 4, rng)
    x = rng.standard_normal((5, 4 * blocks)).astype("float32")
    factors = reflections.transpose(*FACTORS[method](*weights))
    y = reflections.multiply(ops.array(x), *factors)
    expected = x @ oracle_matrix(method, weights).T
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 36])
@pytest.mark.parametrize("method", FACTORS)
def test_gradients_equal_finite_differences(method, blocks, training, rng):
    width = 3
    weights = draw_weights(method, blocks, width, rng)
    x = rng.standard_normal((4, width * blocks)).astype("float32")
    target = rng.standard_normal(x.shape).astype("float32")

    def loss(x, *weights):
        y = reflections.multiply(
            x, *FACTORS[method](*weights), training=training
        )
        return ops.sum(ops.square(y - ops.array(target)))

    def oracle_loss(x, *weights):
        return ((x @ oracle_matrix(method, weights) - target) ** 2).sum()

    found = backends.gradients(loss, [x, *weights])
    expected = backends.finite_differences(oracle_loss, [x, *weights])
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_gradients_of_the_factors_are_finite_where_a_vector_is_zero(
    method, blocks, rng
):
    """Those of the other vectors are as without it."""
    weights = draw_weights(method, blocks, 4, rng)
    upstream = [
        rng.standard_normal(f.shape).astype("float32")
        for f in FACTORS[method](*weights)
    ]

    def loss(*weights):
        factors = FACTORS[method](*weights)
        return sum(
            ops.sum(f * ops.array(g))
            for f, g in zip(factors, upstream, strict=True)
        )

    def gradients_of(weights):
        return backends.gradients(loss, weights)

    without = gradients_of(weights)
    weights[-1] = weights[-1].copy()
    weights[-1][0] = 0
    found = gradients_of(weights)
    assert np.isfinite(found[-1]).all()
    for gradient, reference in zip(found, without, strict=True):
        np.testing.assert_allclose(gradient[1:], reference[1:], rtol=1e-5)


@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_second_derivative_equals_finite_differences(method, rng):
    u, *rest = draw_weights(method, 2, 3, rng)
    x = rng.standard_normal((4, 6)).astype("float32")
    target = rng.standard_normal(x.shape).astype("float32")

    def loss(u):
        factors = FACTORS[method](u, *rest)
        y = reflections.multiply(ops.array(x), *factors, training=True)
        return ops.sum(ops.square(y - ops.array(target)))

    def oracle_loss(u):
        return ((x @ oracle_matrix(method, [u, *rest]) - target) ** 2).sum()

    def squared_gradient(u):
        (gradient,) = backends.finite_differences(oracle_loss, [u], 1e-4)
        return (gradient**2).sum()

    found = backends.squared_gradient_derivative(loss, [u])
    (expected,) = backends.finite_differences(squared_gradient, [u], 1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


# Shorter numbers than this have squares that float32 takes for zero.
numbers = st.floats(-100, 100, width=32).map(lambda x: x * (abs(x) > 1e-6))
vectors = st.sampled_from([(1, 1), (1, 5), (3, 2), (4, 6)]).flatmap(
    lambda shape: arrays("float32", shape, elements=numbers)
)


@settings(max_examples=50, deadline=None)
@given(vectors)
def test_ether_is_orthogonal_and_its_own_inverse(u):
    factors = ether.ether_factors(u)
    identity = ops.eye(u.size)
    h = reflections.multiply(identity, *factors)
    np.testing.assert_allclose(numpy(h) @ numpy(h).T, np.eye(u.size), atol=1e-5)
    twice = reflections.multiply(h, *factors)
    np.testing.assert_allclose(numpy(twice), np.eye(u.size), atol=1e-5)
    expected = np.where(np.any(u != 0, axis=-1), 2.0, 0.0)
    np.testing.assert_allclose(
        numpy(reflections.distance(*factors)), expected, atol=1e-5
    )


@settings(max_examples=50, deadline=None)
@given(vectors, st.integers(0, 2**32 - 1))
def test_ether_plus_stays_within_root_two_of_the_identity(u, seed):
    v = np.random.default_rng(seed).standard_normal(u.shape).astype("float32")
    distance = numpy(reflections.distance(*ether.ether_plus_factors(u, v)))
    assert np.all(distance <= np.sqrt(2) + 1e-5)
    blocks = [dense_oracle.ether_plus_block(*b) for b in zip(u, v, strict=True)]
    expected = [np.linalg.norm(b - np.eye(u.shape[1])) for b in blocks]
    np.testing.assert_allclose(distance, expected, atol=2e-3)


@pytest.mark.parametrize("method", FACTORS)
def test_distance_equals_explicit_matrix(method, rng):
    weights = draw_weights(method, 3, 4, rng)
    found = numpy(reflections.distance(*FACTORS[method](*weights)))
    block = dense_oracle.BLOCKS[method][0]
    expected = [
        np.linalg.norm(block(*rows) - np.eye(4))
        for rows in zip(*weights, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("width", [1, 7, 384])
def test_ether_plus_with_equal_vectors_is_the_identity_to_the_bit(
    compiled, width, rng
):
    u = rng.standard_normal((4, width)).astype("float32")
    x = rng.standard_normal((8, 4 * width)).astype("float32")

    def function(x, u, v):
        return reflections.multiply(x, *ether.ether_plus_factors(u, v))

    if compiled:
        function = backends.compile_function(function)
    y = function(ops.array(x), ops.array(u), ops.array(u.copy()))
    np.testing.assert_array_equal(numpy(y), x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_zero_vectors_are_the_identity_with_finite_gradients(
    method, training, rng
):
    zeros = [np.zeros((2, 3), "float32")] * WEIGHTS[method]
    x = rng.standard_normal((4, 6)).astype("float32")

    def loss(*weights):
        y = reflections.multiply(
            ops.array(x), *FACTORS[method](*weights), training=training
        )
        return ops.sum(ops.square(y))

    y = reflections.multiply(ops.array(x), *FACTORS[method](*zeros))
    np.testing.assert_array_equal(numpy(y), x)
    for gradient in backends.gradients(loss, zeros):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_keep_their_dtype(dtype, rng):
    u = rng.standard_normal((2, 8)).astype("float32")
    x = ops.cast(rng.standard_normal((4, 16)), dtype)
    y = reflections.multiply(x, *ether.ether_factors(u))
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    expected = numpy(ops.cast(x, "float32")) @ oracle_matrix("ether", [u])
    np.testing.assert_allclose(
        numpy(ops.cast(y, "float32")), expected, atol=5e-2
    )
