import keras
import numpy as np
import pytest
from keras import ops

from keras_ether import baselines
from keras_ether import product
from keras_ether import reflections
from keras_ether.matrix_view import MatrixView
from tests import backends
from tests import dense_oracle

DENSE = MatrixView("...d,df->...f", is_matmul=True)
HEADS = MatrixView("btd,dnh->btnh")
JOINED = MatrixView("btnh,nhm->btm")
SHAPES = {
    DENSE: ((2, 5, 40), (40, 40)),
    HEADS: ((2, 5, 40), (40, 4, 10)),
    JOINED: ((2, 5, 8, 5), (8, 5, 40)),
}
FACTORS = {
    "ether": reflections.ether_factors,
    "ether+": reflections.ether_plus_factors,
}
SIDES = {
    "input": ("input",),
    "output": ("output",),
    "both": ("input", "output"),
}


def draw(method, side, blocks, view, rng):
    """Inputs, kernel and vectors of a layer."""
    x_shape, kernel_shape = SHAPES[view]
    sizes = dict(zip(("input", "output"), (40, 40), strict=True))
    vectors = {
        f"{s}_{name}": rng.standard_normal((blocks, sizes[s] // blocks))
        for s in SIDES[side]
        for name in dense_oracle.BLOCKS[method][1]
    }
    arrays = [rng.standard_normal(s) for s in (x_shape, kernel_shape)]
    return [a.astype("float32") for a in (*arrays, *vectors.values())], list(
        vectors
    )


def folded(method, view, names, x, kernel, *vectors, training=True):
    count = len(dense_oracle.BLOCKS[method][1])
    factors = {"input": None, "output": None}
    for i in range(0, len(names), count):
        side = names[i].partition("_")[0]
        factors[side] = FACTORS[method](*vectors[i : i + count])
    return product.folded_product(
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(kernel),
        view,
        factors["input"],
        factors["output"],
        orthogonal=method == "ether",
        training=training,
    )


def oracle(method, view, names, x, kernel, *vectors):
    vectors = dict(zip(names, vectors, strict=True))
    h, g = (
        dense_oracle.side_matrix(method, vectors, side)
        if any(n.startswith(side) for n in names)
        else np.eye(size)
        for side, size in (("input", 40), ("output", 40))
    )
    matrix = h @ kernel.reshape(40, 40) @ g
    return np.einsum(view.equation, x, matrix.reshape(kernel.shape))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


# 20 blocks are gone through one by one, 4 by a block-diagonal matrix.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("blocks", [1, 4, 20])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", FACTORS)
def test_equals_explicit_matrices(method, side, blocks, training, rng):
    arrays, names = draw(method, side, blocks, DENSE, rng)
    y = folded(method, DENSE, names, *arrays, training=training)
    expected = oracle(method, DENSE, names, *arrays)
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("view", [HEADS, JOINED])
@pytest.mark.parametrize("method", FACTORS)
def test_equals_explicit_matrices_for_einsum(method, view, rng):
    arrays, names = draw(method, "both", 2, view, rng)
    y = folded(method, view, names, *arrays)
    expected = oracle(method, view, names, *arrays)
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "side", "blocks", "view"),
    [
        ("ether", "input", 1, DENSE),
        ("ether", "input", 20, JOINED),
        ("ether", "both", 2, DENSE),
        ("ether+", "both", 1, HEADS),
        ("ether+", "both", 20, DENSE),
        ("ether+", "input", 20, JOINED),
        ("ether+", "output", 2, DENSE),
    ],
)
def test_gradients_equal_finite_differences(method, side, blocks, view, rng):
    arrays, names = draw(method, side, blocks, view, rng)
    target = oracle(method, view, names, *arrays)
    target = target + rng.standard_normal(target.shape)

    def loss(x, *vectors):
        y = folded(method, view, names, x, arrays[1], *vectors)
        return ops.mean(ops.square(y - ops.array(target, "float32")))

    def oracle_loss(x, *vectors):
        y = oracle(method, view, names, x, arrays[1], *vectors)
        return ((y - target) ** 2).mean()

    points = [arrays[0], *arrays[2:]]
    found = backends.gradients(loss, points)
    expected = backends.finite_differences(oracle_loss, points)
    for gradient, reference in zip(found, expected, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(gradient, reference, atol=1e-3 * scale)


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="a trainable kernel is not folded on PyTorch",
)
def test_gradient_of_the_kernel_equals_finite_differences(rng):
    arrays, names = draw("ether+", "both", 2, HEADS, rng)
    x, kernel, *vectors = arrays

    def loss(kernel):
        y = folded("ether+", HEADS, names, x, kernel, *vectors)
        return ops.mean(ops.square(y))

    def oracle_loss(kernel):
        return (oracle("ether+", HEADS, names, x, kernel, *vectors) ** 2).mean()

    (found,) = backends.gradients(loss, [kernel])
    (expected,) = backends.finite_differences(oracle_loss, [kernel])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-3 * scale)


@pytest.mark.parametrize("method", FACTORS)
def test_second_derivative_equals_finite_differences(method, rng):
    side = "input" if method == "ether" else "both"
    arrays, names = draw(method, side, 4, DENSE, rng)
    x, kernel, vector, *rest = arrays

    def loss(vector):
        y = folded(method, DENSE, names, x, kernel, vector, *rest)
        return ops.mean(ops.square(y) * ops.abs(y))

    def oracle_loss(vector):
        y = oracle(method, DENSE, names, x, kernel, vector, *rest)
        return np.abs(y**3).mean()

    def squared_gradient(vector):
        (gradient,) = backends.finite_differences(oracle_loss, [vector], 1e-4)
        return (gradient**2).sum()

    found = backends.squared_gradient_derivative(loss, [vector])
    # One number of the vector, since each asks for all of the first ones.
    place = np.zeros_like(vector, "float64")
    place[1, 3] = 1e-4
    expected = (
        squared_gradient(vector + place) - squared_gradient(vector - place)
    ) / 2e-4
    np.testing.assert_allclose(found[1, 3], expected, rtol=1e-2)


# Keras's custom gradients, read by PyTorch's compiler.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("blocks", [4, 20])
@pytest.mark.parametrize("view", [DENSE, HEADS])
def test_ether_plus_with_equal_vectors_is_the_base_to_the_bit(
    view, blocks, compiled, rng
):
    (x, kernel, u, _, v, _), names = draw("ether+", "both", blocks, view, rng)

    def transformed(x, kernel, u, v):
        return folded("ether+", view, names, x, kernel, u, u, v, v)

    base = view.product
    if compiled:
        transformed, base = map(backends.compile_function, (transformed, base))
    tensors = [ops.array(a) for a in (x, kernel, u, v)]
    np.testing.assert_array_equal(
        numpy(transformed(*tensors)), numpy(base(*tensors[:2]))
    )


@pytest.mark.parametrize(
    ("tokens", "d", "f", "dtype", "training", "expected"),
    [
        (8, 16, 16, "float32", True, True),
        (7, 16, 16, "float32", True, False),
        (7, 16, 16, "float32", False, False),
        (64, 16, 16, "bfloat16", True, False),
        (None, 16, 16, "float32", True, True),
        (None, 16, 16, "float32", False, False),
    ],
)
def test_folds_where_activations_have_more_rows(
    tokens, d, f, dtype, training, expected
):
    x = keras.KerasTensor((tokens, d), dtype)
    kernel = keras.KerasTensor((d, f), dtype)
    side = reflections.ether_factors(np.ones((1, d), "float32"))
    assert product.pays(x, kernel, DENSE, [side, side], training) is expected


@pytest.mark.parametrize(("blocks", "on_torch"), [(4, False), (20, True)])
def test_one_side_is_folded_where_gradients_are_compiled(blocks, on_torch):
    x, kernel = keras.KerasTensor((99, 20)), keras.KerasTensor((20, 20))
    side = reflections.ether_factors(np.ones((blocks, 20 // blocks), "float32"))
    expected = on_torch or keras.backend.backend() != "torch"
    assert product.pays(x, kernel, DENSE, [side, None], True) is expected
    assert product.pays(x, kernel, DENSE, [side, None], False)


def test_matrices_and_experts_are_not_folded():
    x, kernel = keras.KerasTensor((99, 4)), keras.KerasTensor((4, 4))
    whole = baselines.oft_factors(np.zeros((1, 4, 4), "float32"))
    assert not product.pays(x, kernel, DENSE, [whole, None], True)
    experts = MatrixView("bed,edf->bef")
    x, kernel = keras.KerasTensor((99, 2, 4)), keras.KerasTensor((2, 4, 4))
    thin = reflections.ether_factors(np.ones((2, 4), "float32"))
    assert not product.pays(x, kernel, experts, [thin, None], True)
