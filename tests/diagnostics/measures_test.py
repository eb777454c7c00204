import time

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from keras_ether.diagnostics import measures
from keras_ether.diagnostics.measures import hyperspherical_energy
from keras_ether.diagnostics.measures import kernel_distance
from keras_ether.methods import ether
from keras_ether.ops import reflections


def oracle_energy(kernel):
    """Pair by pair, in float64."""
    columns = [w / np.linalg.norm(w) for w in np.asarray(kernel, "float64").T]
    return sum(
        1.0 / np.linalg.norm(a - b)
        for i, a in enumerate(columns)
        for b in columns[i + 1 :]
    )


def test_energy_equals_pair_by_pair(rng):
    kernel = rng.normal(size=(5, 9))
    found = hyperspherical_energy(kernel.astype("float32"))
    assert found == pytest.approx(oracle_energy(kernel), rel=1e-6)
    # The corners of a square: four sides of √2, two diagonals of 2.
    square = np.array([[1.0, 0.0, -3.0, 0.0], [0.0, 2.0, 0.0, -1.0]])
    assert hyperspherical_energy(square) == pytest.approx(4 / 2**0.5 + 2 / 2)


def test_tiles_do_not_show(rng, monkeypatch):
    kernel = rng.normal(size=(3, 23)).astype("float32")
    whole = hyperspherical_energy(kernel)
    for tile in (1, 5, 22, 23):
        monkeypatch.setattr(measures, "TILE", tile)
        assert hyperspherical_energy(kernel) == pytest.approx(whole, rel=1e-7)


@pytest.mark.parametrize("numbers", [1, 2**22])
def test_close_neurons_keep_their_digits(numbers, rng, monkeypatch):
    monkeypatch.setattr(measures, "MOST_NUMBERS", numbers)
    one = rng.normal(size=(64, 1)).astype("float32")
    near = one + 1e-5 * rng.normal(size=(64, 7)).astype("float32")
    kernel = np.concatenate([one, near], axis=1)
    expected = oracle_energy(kernel)
    assert hyperspherical_energy(kernel) == pytest.approx(expected, rel=1e-6)


def test_one_direction_is_infinite_and_none_is_left_out(rng):
    kernel = rng.normal(size=(4, 6)).astype("float32")
    twice = np.concatenate([kernel, 2 * kernel[:, :1]], axis=1)
    assert hyperspherical_energy(twice) == np.inf
    dead = np.concatenate([kernel, np.zeros((4, 3), "float32")], axis=1)
    assert hyperspherical_energy(dead) == hyperspherical_energy(kernel)
    assert hyperspherical_energy(np.zeros((4, 3))) == 0.0


def test_a_diverged_kernel_has_no_energy(rng):
    kernel = rng.normal(size=(4, 6)).astype("float32")
    kernel[0, 0] = np.nan
    assert np.isnan(hyperspherical_energy(kernel))


def test_energies_of_a_stack_are_added(rng):
    stack = rng.normal(size=(3, 4, 6)).astype("float32")
    expected = sum(hyperspherical_energy(kernel) for kernel in stack)
    assert hyperspherical_energy(stack) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_of_16_bits(dtype, rng):
    kernel = ops.cast(rng.normal(size=(4, 6)), dtype)
    exact = ops.convert_to_numpy(ops.cast(kernel, "float32"))
    expected = oracle_energy(exact)
    assert hyperspherical_energy(kernel) == pytest.approx(expected, rel=1e-6)
    assert kernel_distance(kernel, 2 * kernel) == pytest.approx(1.0, rel=1e-6)


shapes = st.tuples(st.integers(2, 6), st.integers(2, 6))
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(shapes, seeds)
# Two neurons less than a thousandth apart.
@example((2, 6), 1457)
def test_energy_is_one_of_directions_and_angles_only(shape, seed):
    """Lengths, the order and a rotation of the input change nothing."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype("float32")
    energy = hyperspherical_energy(kernel)
    # Powers of two, by which no direction is rounded.
    lengths = np.exp2(rng.integers(-4, 5, shape[1]))
    assert hyperspherical_energy(kernel * lengths) == pytest.approx(
        energy, rel=1e-6
    )
    order = rng.permutation(shape[1])
    assert hyperspherical_energy(kernel[:, order]) == pytest.approx(
        energy, rel=1e-6
    )
    # Of all rotations, those that round no number of a neuron.
    signs = rng.choice([-1, 1], (shape[0], 1))
    turned = kernel[rng.permutation(shape[0])] * signs
    assert hyperspherical_energy(turned) == pytest.approx(energy, rel=1e-4)
    rotation, _ = np.linalg.qr(rng.normal(size=(shape[0], shape[0])))
    # Rounding to float32 turns each neuron a little, which is no small part of
    # the angle between two that nearly have one direction.
    assume(energy < 100)
    assert hyperspherical_energy(rotation @ kernel) == pytest.approx(
        energy, rel=1e-4
    )


@settings(max_examples=30, deadline=None)
@given(shapes, seeds)
def test_no_pair_has_less_than_half(shape, seed):
    kernel = np.random.default_rng(seed).normal(size=shape)
    pairs = shape[1] * (shape[1] - 1) / 2
    assert hyperspherical_energy(kernel) >= 0.5 * pairs * (1 - 1e-6)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 4]), seeds)
def test_ether_keeps_the_energy_and_bounds_the_distance(blocks, seed):
    """‖H W − W‖ ≤ ‖H − I‖₂ ‖W‖, and an ETHER block has ‖H − I‖₂ = 2."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(8, 5)).astype("float32")
    factors = ether.ether_factors(rng.normal(size=(blocks, 8 // blocks)))
    rows = reflections.multiply(
        ops.array(kernel.T), *reflections.transpose(*factors)
    )
    moved = ops.transpose(rows)
    assert hyperspherical_energy(moved) == pytest.approx(
        hyperspherical_energy(kernel), rel=1e-4
    )
    assert 0 < kernel_distance(kernel, moved) <= 2 + 1e-5


def test_kernel_distance_equals_norms(rng):
    before, after = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert kernel_distance(before, after) == pytest.approx(expected, rel=1e-5)
    assert kernel_distance(before, before) == 0.0
    assert kernel_distance(np.zeros(3), np.zeros(3)) == 0.0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"before of shape \(2, 3\)"):
        kernel_distance(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"kernel of shape \(3,\)"):
        hyperspherical_energy(np.ones(3))


@pytest.mark.nightly
def test_a_kernel_of_llama_2_7b_fits(rng):
    kernel = rng.standard_normal((4096, 11008), dtype="float32")
    start = time.perf_counter()
    found = hyperspherical_energy(kernel)
    seconds = time.perf_counter() - start
    # Random directions in many dimensions are √2 apart.
    expected = 11008 * 11007 / 2 / 2**0.5
    assert found == pytest.approx(expected, rel=1e-3)
    assert seconds < 600
