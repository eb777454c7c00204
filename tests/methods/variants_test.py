"""Strengths and chains against explicit matrices."""

import hypothesis
import hypothesis.extra.numpy as arrays_of
import keras
import numpy as np
import pytest
from hypothesis import strategies
from keras import ops

from keras_ether import methods
from keras_ether.methods import variants
from keras_ether.ops.reflections import multiply
from tests import backends
from tests import dense_oracle

ENTRIES = strategies.floats(-2.0, 2.0, width=32)


def numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor), "float64")


def blocks_of(method, weights):
    """Whole blocks of a method, `(blocks, width, width)`."""
    left, right = method.factors(*map(ops.convert_to_tensor, weights))
    deviation = numpy(left)
    if right is not None:
        deviation = np.einsum("nkw,nkv->nwv", deviation, numpy(right))
    return np.eye(deviation.shape[-1]) + deviation


def reflection(u):
    u = u.astype("float64")
    u = u / np.linalg.norm(u)
    return np.eye(len(u)) - 2.0 * np.outer(u, u)


@pytest.mark.parametrize("k", [2, 7])
def test_a_chain_is_the_product_of_its_reflections(k, rng):
    method = methods.variant(methods.get("ether"), None, k)
    u = rng.standard_normal((3, k, 5)).astype("float32")
    for block, normals in zip(blocks_of(method, [u]), u, strict=True):
        expected = np.linalg.multi_dot([np.eye(5), *map(reflection, normals)])
        np.testing.assert_allclose(block, expected, atol=5e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_a_chain_starts_in_equal_pairs(k, rng):
    method = methods.variant(methods.get("ether"), None, k)
    (u,) = method.start(2, 6, rng)
    assert u.shape == (2, k, 6)
    expected = [
        reflection(normals[-1]) if k % 2 else np.eye(6) for normals in u
    ]
    found = blocks_of(method, [u])
    if k % 2:
        np.testing.assert_allclose(found, expected, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)
    assert methods.starts_at_identity(method) == (k % 2 == 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_equal_pairs_are_the_identity_to_the_bit(compiled, rng):
    method = methods.variant(methods.get("ether"), None, 4)
    normals = rng.standard_normal((2, 2, 8)).astype("float32")
    u = np.repeat(normals, 2, axis=1)
    x = rng.standard_normal((5, 16)).astype("float32")

    def function(x, u):
        return multiply(x, *method.factors(u))

    if compiled:
        function = backends.compile_function(function)
    found = function(ops.convert_to_tensor(x), ops.convert_to_tensor(u))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), x)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
@pytest.mark.parametrize("strength", ["learned", 0.25, 1.0])
def test_a_strength_scales_the_deviation(name, strength, rng):
    plain = methods.get(name)
    method = methods.variant(plain, strength, 1)
    weights = list((plain.random_start or plain.start)(3, 4, rng))
    expected = blocks_of(plain, weights) - np.eye(4)
    if strength == "learned":
        t = np.array([[0.3], [-2.0], [0.0]], "float32")
        weights.append(t)
        expected = expected * np.tanh(t.astype("float64"))[..., None]
    else:
        expected = strength * expected
    found = blocks_of(method, weights) - np.eye(4)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert method.orthogonal == (plain.orthogonal and strength == 1.0)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_learned_strength_starts_at_the_identity_and_moves(name, rng):
    method = methods.variant(methods.get(name), "learned", 1)
    weights = method.start(2, 4, rng)
    assert method.weights[-1] == "strength"
    assert weights[-1].shape == (2, 1)
    np.testing.assert_array_equal(
        blocks_of(method, weights), np.tile(np.eye(4), (2, 1, 1))
    )
    x = rng.standard_normal((5, 8)).astype("float32")
    direction = ops.array(rng.standard_normal((5, 8)), "float32")

    def loss(*weights):
        y = multiply(ops.convert_to_tensor(x), *method.factors(*weights))
        return ops.sum(y * direction)

    *_, gradient = backends.gradients(loss, list(weights))
    assert np.abs(gradient).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "strength", "k"),
    [
        ("ether", "learned", 1),
        ("ether+", "learned", 1),
        ("ether", None, 3),
        ("ether", "learned", 2),
    ],
)
def test_gradients_are_those_of_finite_differences(name, strength, k, rng):
    method = methods.variant(methods.get(name), strength, k)
    start = method.random_start or method.start
    weights = [w.astype("float64") for w in start(2, 3, rng)]
    if strength:
        weights = weights[: len(method.weights) - 1]
        weights.append(np.array([[0.4], [-0.7]]))
    x = rng.standard_normal((4, 6))
    direction = rng.standard_normal((4, 6))

    def loss(*weights):
        y = multiply(
            ops.convert_to_tensor(x.astype("float32")),
            *method.factors(*weights),
            training=True,
        )
        return ops.sum(y * ops.array(direction, "float32"))

    def dense(*weights):
        *vectors, last = weights
        scale = np.tanh(last) if strength else np.ones((2, 1))
        vectors = vectors if strength else weights
        y = []
        for i, rows in enumerate(np.split(x, 2, axis=1)):
            if name == "ether+":
                block = dense_oracle.ether_plus_block(*(v[i] for v in vectors))
            else:
                normals = np.atleast_2d(vectors[0][i])
                block = np.linalg.multi_dot(
                    [np.eye(3), np.eye(3), *map(reflection, normals)]
                )
            deviation = scale[i, 0] * (block - np.eye(3))
            y.append(rows + rows @ deviation)
        return np.sum(np.concatenate(y, axis=1) * direction)

    found = backends.gradients(loss, [w.astype("float32") for w in weights])
    expected = backends.finite_differences(dense, weights)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    u=arrays_of.arrays("float32", (2, 3), elements=ENTRIES),
    v=arrays_of.arrays("float32", (2, 3), elements=ENTRIES),
    t=arrays_of.arrays(
        "float32", (2, 1), elements=strategies.floats(-1e4, 1e4, width=32)
    ),
)
def test_the_bound_holds_whatever_is_learned(u, v, t):
    for name, weights, bound in (
        ("ether", [u, t], 2.0),
        ("ether+", [u, v, t], np.sqrt(2.0)),
    ):
        method = methods.variant(methods.get(name), "learned", 1)
        deviation = blocks_of(method, weights) - np.eye(3)
        assert (np.linalg.norm(deviation, axis=(1, 2)) <= bound + 1e-5).all()


def test_strengths_are_within_one():
    found = variants.bounded(ops.array([-50.0, -1e-3, 0.0, 1e-3, 50.0]))
    np.testing.assert_allclose(
        numpy(found), [-1.0, -1e-3, 0.0, 1e-3, 1.0], rtol=1e-5
    )
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
