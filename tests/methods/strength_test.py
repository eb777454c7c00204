"""Strengths against explicit matrices."""

import hypothesis
import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import strategies
from keras import ops

from keras_ether import methods
from keras_ether.ops.reflections import multiply
from tests import backends
from tests import dense_oracle

BLOCKS = {
    "ether": dense_oracle.ether_block,
    "ether+": dense_oracle.ether_plus_block,
}
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


@pytest.mark.parametrize("name", sorted(methods.METHODS))
@pytest.mark.parametrize("strength", ["learned", 0.25, 1.0])
def test_a_strength_scales_the_deviation(name, strength, rng):
    plain = methods.get(name)
    method = methods.with_strength(plain, strength)
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
    method = methods.with_strength(methods.get(name), "learned")
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


@pytest.mark.parametrize("name", ["ether", "ether+"])
def test_gradients_are_those_of_finite_differences(name, rng):
    plain = methods.get(name)
    method = methods.with_strength(plain, "learned")
    weights = [
        weight.astype("float64")
        for weight in (plain.random_start or plain.start)(2, 3, rng)
    ]
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
        *vectors, t = weights
        y = []
        for i, rows in enumerate(np.split(x, 2, axis=1)):
            block = BLOCKS[name](*(vector[i] for vector in vectors))
            y.append(rows + np.tanh(t[i]) * rows @ (block - np.eye(3)))
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
        method = methods.with_strength(methods.get(name), "learned")
        deviation = blocks_of(method, weights) - np.eye(3)
        assert (np.linalg.norm(deviation, axis=(1, 2)) <= bound + 1e-5).all()


def test_strengths_are_within_one():
    method = methods.with_strength(methods.get("ether"), "learned")
    strengths = np.array([-50.0, -1e-3, 0.0, 1e-3, 50.0], "float32")
    u = np.ones((5, 4), "float32")
    found = blocks_of(method, [u, strengths[:, None]])
    bounded = np.array([-1.0, -1e-3, 0.0, 1e-3, 1.0])
    reflection = np.eye(4) - 0.5
    expected = np.eye(4) + bounded[:, None, None] * (reflection - np.eye(4))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
