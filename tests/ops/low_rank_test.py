import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_ether.methods import baselines
from keras_ether.methods import ether
from keras_ether.ops import low_rank
from keras_ether.ops import reflections
from keras_ether.ops.matrix_view import MatrixView
from tests import backends
from tests import dense_oracle

DENSE = MatrixView("...d,df->...f", is_matmul=True)
HEADS = MatrixView("btd,dnh->btnh")
JOINED = MatrixView("btnh,nhm->btm")
WIDE = MatrixView("...d,df->...f", is_matmul=False)
NARROW = MatrixView("bd,df->bf", is_matmul=True)
SHAPES = {
    DENSE: ((2, 5, 40), (40, 40)),
    WIDE: ((2, 5, 20), (20, 40)),
    NARROW: ((9, 40), (40, 20)),
    HEADS: ((2, 5, 40), (40, 4, 10)),
    JOINED: ((2, 5, 8, 5), (8, 5, 40)),
}
FACTORS = {
    "ether": ether.ether_factors,
    "ether+": ether.ether_plus_factors,
}
SIDES = {
    "input": ("input",),
    "output": ("output",),
    "both": ("input", "output"),
}


def draw(method, side, blocks, view, rng):
    """Inputs, kernel and vectors of a layer."""
    x_shape, kernel_shape = SHAPES[view]
    _, *sizes = view.sizes(kernel_shape)
    sizes = dict(zip(("input", "output"), sizes, strict=True))
    vectors = {
        f"{s}_{name}": rng.standard_normal((blocks, sizes[s] // blocks))
        for s in SIDES[side]
        for name in dense_oracle.BLOCKS[method][1]
    }
    arrays = [rng.standard_normal(s) for s in (x_shape, kernel_shape)]
    return [a.astype("float32") for a in (*arrays, *vectors.values())], list(
        vectors
    )


def folded(
    method,
    view,
    names,
    x,
    kernel,
    *vectors,
    bias=None,
    training=True,
    product=low_rank.folded_product,
):
    count = len(dense_oracle.BLOCKS[method][1])
    sides = {"input": None, "output": None}
    for i in range(0, len(names), count):
        side = names[i].partition("_")[0]
        numbers = [ops.convert_to_tensor(v) for v in vectors[i : i + count]]
        sides[side] = FACTORS[method](*numbers)
    return product(
        ops.convert_to_tensor(x),
        ops.convert_to_tensor(kernel),
        view,
        sides["input"],
        sides["output"],
        bias,
        training=training,
    )


# The form that 16 bits use, here in float32 so that it can be compared.
unfolded = functools.partial(folded, product=low_rank.wide_side_unfolded)


def oracle(method, view, names, x, kernel, *vectors):
    vectors = dict(zip(names, vectors, strict=True))
    _, d, f = view.sizes(kernel.shape)
    h, g = (
        dense_oracle.side_matrix(method, vectors, side)
        if any(n.startswith(side) for n in names)
        else np.eye(size)
        for side, size in (("input", d), ("output", f))
    )
    matrix = h @ kernel.reshape(d, f) @ g
    return np.einsum(view.equation, x, matrix.reshape(kernel.shape))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(numpy(found), expected, atol=1e-3 * scale)


def check_gradients(function, reference, points):
    """Those of the distance to random outputs."""
    target = reference(*points)
    target = target + np.random.default_rng(1).standard_normal(target.shape)

    def loss(*points):
        distances = function(*points) - ops.array(target, "float32")
        return ops.mean(ops.square(distances))

    found = backends.gradients(loss, points)
    expected = backends.finite_differences(
        lambda *points: ((reference(*points) - target) ** 2).mean(), points
    )
    for gradient, difference in zip(found, expected, strict=True):
        close(gradient, difference)


def check_tangent(function, reference, points):
    """That along a random direction in all points together."""
    rng = np.random.default_rng(1)
    directions = [
        rng.standard_normal(a.shape).astype("float32") for a in points
    ]

    def moved(step):
        pairs = zip(points, directions, strict=True)
        return reference(*(np.float64(a) + step * d for a, d in pairs))

    found = backends.directional_derivative(function, points, directions)
    close(found, (moved(1e-5) - moved(-1e-5)) / 2e-5)


# 4 blocks make one matrix, 20 more than one.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("blocks", [1, 4, 20])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", FACTORS)
def test_equals_explicit_matrices(method, side, blocks, training, rng):
    arrays, names = draw(method, side, blocks, DENSE, rng)
    y = folded(method, DENSE, names, *arrays, training=training)
    expected = oracle(method, DENSE, names, *arrays)
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("view", [HEADS, JOINED, WIDE, NARROW])
@pytest.mark.parametrize("method", FACTORS)
def test_equals_explicit_matrices_of_any_shape(method, view, side, rng):
    arrays, names = draw(method, side, 2, view, rng)
    y = folded(method, view, names, *arrays)
    expected = oracle(method, view, names, *arrays)
    np.testing.assert_allclose(numpy(y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("method", "side", "blocks", "view"),
    [
        ("ether", "input", 1, DENSE),
        ("ether", "input", 20, JOINED),
        ("ether", "input", 4, WIDE),
        ("ether", "input", 4, NARROW),
        ("ether", "input", 20, NARROW),
        ("ether", "output", 20, WIDE),
        ("ether", "both", 2, DENSE),
        ("ether", "input", 2, HEADS),
        ("ether+", "both", 1, HEADS),
        ("ether+", "output", 2, HEADS),
        ("ether+", "both", 4, JOINED),
        ("ether+", "both", 4, NARROW),
        ("ether+", "both", 10, WIDE),
        ("ether+", "both", 20, DENSE),
        ("ether+", "input", 20, JOINED),
        ("ether+", "output", 2, DENSE),
    ],
)
def test_gradients_equal_finite_differences(method, side, blocks, view, rng):
    arrays, names = draw(method, side, blocks, view, rng)
    check_gradients(
        functools.partial(folded, method, view, names),
        functools.partial(oracle, method, view, names),
        arrays,
    )


@pytest.mark.parametrize("blocks", [2, 10])
def test_gradients_of_any_orthogonal_method_equal_finite_differences(
    blocks, rng
):
    """Of rotations, whose factors are not along what they project out."""
    x, kernel = (
        rng.standard_normal(shape).astype("float32") for shape in SHAPES[WIDE]
    )
    vectors = rng.standard_normal((2, blocks, 20 // blocks)).astype("float32")

    def rotated(x, u, v):
        u, v = reflections.unit(u)[:, None], reflections.unit(v)[:, None]
        inner = ops.sum(u * v, axis=-1, keepdims=True)
        left = ops.concatenate([u, v], axis=1)
        right = ops.concatenate([4.0 * inner * v - 2.0 * u, -2.0 * v], axis=1)
        return low_rank.folded_product(
            ops.convert_to_tensor(x),
            ops.array(kernel),
            WIDE,
            (left, right),
            None,
            None,
            training=True,
        )

    def reference(x, u, v):
        h, g = (
            dense_oracle.side_matrix("ether", {"input_u": a}, "input")
            for a in (u, v)
        )
        return x @ h @ g @ kernel

    check_gradients(rotated, reference, [x, *vectors])


# `HEADS` gives (2, 5, 4, 10).
@pytest.mark.parametrize("shape", [(4, 10), (10,), (4, 1), (2, 1, 1, 10)])
@pytest.mark.parametrize("training", [False, True])
def test_a_bias_is_added_and_trains(training, shape, rng):
    arrays, names = draw("ether", "input", 2, HEADS, rng)
    bias = rng.standard_normal(shape).astype("float32")
    tensors = [ops.array(a) for a in (*arrays, bias)]

    def outputs(bias):
        return folded(
            "ether",
            HEADS,
            names,
            *tensors[:-1],
            bias=ops.convert_to_tensor(bias),
            training=training,
        )

    y = oracle("ether", HEADS, names, *arrays)
    np.testing.assert_allclose(
        numpy(outputs(tensors[-1])), y + bias, rtol=1e-3, atol=1e-4
    )
    # Nothing of the layer's own is what the bias was added to.
    for tensor, array in zip(tensors, (*arrays, bias), strict=True):
        np.testing.assert_array_equal(numpy(tensor), array)
    check_gradients(outputs, lambda bias: y + bias, [bias])


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="compilers leave out what nobody asks for",
)
@pytest.mark.parametrize("method", FACTORS)
def test_frozen_inputs_and_kernels_cost_no_gradient(method, rng):
    """As those of a model's first layers, behind a frozen embedding."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = "input" if method == "ether" else "both"
    arrays, names = draw(method, side, 4, DENSE, rng)

    def backward_flops(*trained):
        x, kernel, *vectors = (
            torch.tensor(a, requires_grad=i > 1 or i in trained)
            for i, a in enumerate(arrays)
        )
        y = folded(method, DENSE, names, x, kernel, *vectors).sum()
        with FlopCounterMode(display=False) as counter:
            y.backward()
        return counter.get_total_flops()

    whole = 2 * 10 * 40 * 40
    assert backward_flops(0) - backward_flops() == whole
    # And that of the rows that the kernel is multiplied with.
    assert backward_flops(0, 1) - backward_flops(0) > whole


@pytest.mark.parametrize("product", [folded, unfolded])
@pytest.mark.parametrize("method", FACTORS)
def test_second_derivative_equals_finite_differences(method, product, rng):
    side = "input" if method == "ether" else "both"
    arrays, names = draw(method, side, 4, DENSE, rng)
    x, kernel, vector, *rest = arrays

    def loss(vector):
        y = product(method, DENSE, names, x, kernel, vector, *rest)
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


@pytest.mark.parametrize(
    ("method", "side", "blocks", "view"),
    [
        ("ether", "input", 4, WIDE),
        ("ether", "input", 20, WIDE),
        ("ether", "input", 2, HEADS),
        ("ether", "output", 4, NARROW),
        ("ether+", "input", 20, JOINED),
        ("ether+", "both", 4, HEADS),
        ("ether+", "both", 20, DENSE),
    ],
)
def test_forward_mode_equals_differences(method, side, blocks, view, rng):
    """Along a direction in inputs, kernel, vectors and bias together."""
    arrays, names = draw(method, side, blocks, view, rng)
    bias = rng.standard_normal(oracle(method, view, names, *arrays).shape[-1:])

    def outputs(*points):
        return folded(method, view, names, *points[:-1], bias=points[-1])

    def reference(*points):
        return oracle(method, view, names, *points[:-1]) + points[-1]

    check_tangent(outputs, reference, [*arrays, bias.astype("float32")])


@pytest.mark.parametrize("place", range(4))
def test_forward_mode_along_one_argument(place, rng):
    """The others are constants, of which JAX hands on no tangent."""
    arrays, names = draw("ether", "input", 4, WIDE, rng)
    points = [*arrays, rng.standard_normal(40).astype("float32")]

    def with_one(moved):
        return [moved if i == place else a for i, a in enumerate(points)]

    def outputs(moved):
        *arrays, bias = with_one(moved)
        return folded("ether", WIDE, names, *arrays, bias=ops.array(bias))

    def reference(moved):
        *arrays, bias = with_one(moved)
        return oracle("ether", WIDE, names, *arrays) + bias

    check_tangent(outputs, reference, [points[place]])


# Custom gradients, read by PyTorch's compiler.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize(
    ("view", "blocks", "compiled"),
    [
        (DENSE, 4, False),
        (DENSE, 4, True),
        (DENSE, 20, False),
        (HEADS, 20, False),
        # PyTorch's compiler takes half a minute for one of these.
        pytest.param(DENSE, 20, True, marks=pytest.mark.nightly),
        pytest.param(HEADS, 4, True, marks=pytest.mark.nightly),
    ],
)
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
        (8, 16, 16, "bfloat16", True, True),
        (7, 16, 16, "bfloat16", True, False),
        (None, 16, 16, "float32", True, True),
        (None, 16, 16, "float32", False, False),
    ],
)
def test_folds_where_activations_have_more_rows(
    tokens, d, f, dtype, training, expected
):
    x = keras.KerasTensor((tokens, d), dtype)
    kernel = keras.KerasTensor((d, f), dtype)
    side = thin_factors(2, d // 2)
    assert (
        low_rank.is_cheaper(x, kernel, DENSE, [side, side], training)
        is expected
    )
    assert (
        low_rank.is_cheaper(x, kernel, DENSE, [side, None], training)
        is expected
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_xla_makes_sums_of_one_row_in_16_bits(dtype):
    x, kernel = (
        keras.KerasTensor((9, 8), dtype),
        keras.KerasTensor((8, 8), dtype),
    )
    side = thin_factors(1, 8)
    sums = keras.backend.backend() == "jax" and dtype == "bfloat16"
    assert low_rank.is_cheaper(x, kernel, DENSE, [side, side], True)
    assert low_rank.is_cheaper(x, kernel, DENSE, [side, None], True) is not sums


def thin_factors(blocks, width):
    return ether.ether_factors(np.ones((blocks, width), "float32"))


def test_matrices_and_experts_are_not_folded():
    x, kernel = keras.KerasTensor((99, 4)), keras.KerasTensor((4, 4))
    whole = baselines.oft_factors(np.zeros((1, 4, 4), "float32"))
    assert not low_rank.is_cheaper(x, kernel, DENSE, [whole, None], True)
    experts = MatrixView("bed,edf->bef")
    x, kernel = keras.KerasTensor((99, 2, 4)), keras.KerasTensor((2, 4, 4))
    thin = thin_factors(2, 4)
    assert not low_rank.is_cheaper(x, kernel, experts, [thin, None], True)
    x, kernel = keras.KerasTensor((99, 1, 4)), keras.KerasTensor((1, 4, 4))
    assert not low_rank.is_cheaper(x, kernel, experts, [thin, None], True)


def test_layers_that_reorder_their_rows_are_not_folded():
    """The rows of their outputs are not those of their inputs in turn."""
    x, kernel = keras.KerasTensor((9, 9, 4)), keras.KerasTensor((4, 4))
    thin = thin_factors(2, 4)
    for equation, expected in (("abc,cd->bad", False), ("abc,cd->adb", True)):
        view = MatrixView(equation)
        assert (
            low_rank.is_cheaper(x, kernel, view, [thin, None], True) is expected
        )


# 4 blocks stay unfolded, 10 are folded into the kernel.
UNFOLDED = [
    (method, side, blocks, view)
    for method, side in (
        ("ether", "input"),
        ("ether", "output"),
        ("ether+", "both"),
    )
    for blocks, view in ((4, DENSE), (2, HEADS), (2, JOINED), (10, NARROW))
]


@pytest.mark.by_turns
@pytest.mark.parametrize(("method", "side", "blocks", "view"), UNFOLDED)
def test_unfolded_pairs(method, side, blocks, view, rng):
    """Values, gradients and forward mode, where activations are narrower."""
    arrays, names = draw(method, side, blocks, view, rng)
    _, kernel_shape = SHAPES[view]
    _, d, f = view.sizes(kernel_shape)
    if (side == "input" and d < f) or (side == "output" and f < d):
        pytest.skip("the wide side is not transformed")
    expected = oracle(method, view, names, *arrays)
    for training in (False, True):
        y = unfolded(method, view, names, *arrays, training=training)
        np.testing.assert_allclose(numpy(y), expected, rtol=1e-3, atol=1e-4)
    function = functools.partial(unfolded, method, view, names)
    reference = functools.partial(oracle, method, view, names)
    check_gradients(function, reference, arrays)
    check_tangent(function, reference, arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("view", [DENSE, HEADS, JOINED])
@pytest.mark.parametrize("training", [False, True])
def test_ether_plus_starts_at_the_base_in_16_bits(view, training, dtype, rng):
    (x, kernel, u, _, v, _), names = draw("ether+", "both", 4, view, rng)
    x, kernel = (ops.cast(ops.array(a), dtype) for a in (x, kernel))
    y = folded("ether+", view, names, x, kernel, u, u, v, v, training=training)
    base = view.product(x, kernel)
    assert y.dtype == base.dtype
    for a in (y, base):
        assert keras.backend.standardize_dtype(a.dtype) == dtype
    np.testing.assert_array_equal(
        numpy(ops.cast(y, "float32")), numpy(ops.cast(base, "float32"))
    )
