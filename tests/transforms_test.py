"""What a backend's own transforms and casts make of adapted layers."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import backends
from tests import kinds
from tests import models

BACKEND = keras.backend.backend()
only_jax = pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
only_torch = pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="of TensorFlow"
)
METHODS = ["ether", "ether+", "oft"]


def adapted(kind, method, rng):
    model = kinds.model_of(kind)
    kinds.adapt(model, method, rng)
    return model


def loss_of(model, x, training=True):
    """A loss as a function of the trainable variables' values."""
    fixed = [v.value for v in model.non_trainable_variables]

    def loss(trained):
        y, _ = model.stateless_call(trained, fixed, x, training=training)
        return ops.mean(ops.square(y))

    return loss, [v.value for v in model.trainable_variables]


def numeric_derivative(model, x, directions, step=1e-2):
    """Of the loss along directions in the trainable variables."""
    before = models.values(model.trainable_variables)

    def loss_at(distance):
        for variable, value, direction in zip(
            model.trainable_variables, before, directions, strict=True
        ):
            variable.assign(value + distance * direction)
        return (models.call(model, x).astype("float64") ** 2).mean()

    found = (loss_at(step) - loss_at(-step)) / (2 * step)
    loss_at(0.0)
    return found


def directions_of(model, rng):
    return [
        rng.standard_normal(v.shape).astype("float32")
        for v in model.trainable_variables
    ]


@pytest.mark.parametrize(("kind", "method"), kinds.sweep(*METHODS))
def test_forward_mode_of_every_kind(kind, method, rng):
    """It is the gradient along the direction."""
    if BACKEND == "tensorflow":
        pytest.skip("see the accumulators below")
    model, x = adapted(kind, method, rng), kinds.inputs_of(kind, rng)
    loss, trained = loss_of(model, ops.convert_to_tensor(x))
    directions = directions_of(model, rng)
    points = models.values(trained)

    def of_list(*values):
        return loss(list(values))

    if BACKEND == "jax":
        of_list = backends.compile_function(of_list)
    found = backends.directional_derivative(of_list, points, directions)
    gradients = backends.gradients(of_list, points)
    along = [(g * d).sum() for g, d in zip(gradients, directions, strict=True)]
    np.testing.assert_allclose(found, sum(along), rtol=1e-3, atol=1e-4)


SOME_KINDS = ["dense", "einsum", "conv2d", "embedding"]


@only_jax
@pytest.mark.parametrize(
    ("kind", "method"), kinds.sweep(*METHODS, kinds=SOME_KINDS)
)
def test_transforms_of_jax(kind, method, rng):
    import jax

    model, x = adapted(kind, method, rng), kinds.inputs_of(kind, rng)
    loss, trained = loss_of(model, x)
    loss = jax.jit(loss)
    directions = directions_of(model, rng)
    value, tangent = jax.jvp(loss, (trained,), (directions,))
    again, linear = jax.linearize(loss, trained)
    np.testing.assert_allclose(again, value, rtol=1e-5)
    np.testing.assert_allclose(linear(directions), tangent, rtol=1e-4)
    gradients = jax.grad(loss)(trained)
    along = sum((g * d).sum() for g, d in zip(gradients, directions, strict=1))
    np.testing.assert_allclose(along, tangent, rtol=1e-3, atol=1e-5)
    # A product of the Hessian, forward over reverse and reverse over forward.
    _, first = jax.jvp(jax.grad(loss), (trained,), (directions,))
    second = jax.grad(lambda t: jax.jvp(loss, (t,), (directions,))[1])(trained)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)


@only_jax
def test_gradients_for_each_example_on_jax(rng):
    import jax

    model, x = adapted("dense", "ether+", rng), kinds.inputs_of("dense", rng)
    _, trained = loss_of(model, x)

    def one(trained, row):
        return loss_of(model, row[None])[0](trained)

    gradient = jax.grad(one)
    found = jax.jit(jax.vmap(gradient, (None, 0)))(trained, x)
    gradient = jax.jit(gradient)
    for i, row in enumerate(x):
        expected = gradient(trained, row)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5)


@only_torch
@pytest.mark.parametrize(
    ("kind", "method"), kinds.sweep(*METHODS, kinds=SOME_KINDS)
)
def test_transforms_of_torch(kind, method, rng):
    import torch

    model, x = adapted(kind, method, rng), kinds.inputs_of(kind, rng)
    x = torch.tensor(x)
    loss, trained = loss_of(model, x)
    with_graph = [t.detach().requires_grad_() for t in trained]
    expected = torch.autograd.grad(loss(with_graph), with_graph)
    detached = [t.detach() for t in trained]
    for a, b in zip(torch.func.grad(loss)(detached), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    if kind == "conv2d":
        return  # No `vmap` of Keras's own convolutions.

    def one(trained, row):
        return loss_of(model, row[None])[0](trained)

    found = torch.func.vmap(torch.func.grad(one), (None, 0))(detached, x)
    for i in range(len(x)):
        for a, b in zip(
            found, torch.func.grad(one)(detached, x[i]), strict=True
        ):
            torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-5)


@only_torch
def test_an_ensemble_of_adapters_on_torch(rng):
    """Predictions of several sets of vectors by one `vmap`."""
    import torch

    model, x = adapted("dense", "ether", rng), kinds.inputs_of("dense", rng)
    x = torch.tensor(x)
    loss, trained = loss_of(model, x, training=False)
    sets = [[t.detach() * f for t in trained] for f in (1.0, -2.0, 0.5)]
    stacked = [torch.stack(values) for values in zip(*sets, strict=True)]
    found = torch.func.vmap(loss)(stacked)
    for value, values in zip(found, sets, strict=True):
        torch.testing.assert_close(value, loss(values), rtol=1e-4, atol=1e-6)


@only_torch
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", kinds.LAYERS)
def test_autocast(kind, method, rng):
    """Gradients under autocast are those without, to 16 bits."""
    import torch

    model, x = (
        adapted(kind, method, rng),
        torch.tensor(kinds.inputs_of(kind, rng)),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = model(x, training=True)
            loss = (y.float() ** 2).mean()
        return y.dtype, torch.autograd.grad(loss, parameters)

    plain = kinds.model_of(kind)
    with torch.autocast("cpu", torch.bfloat16):
        plain_dtype = plain(x, training=True).dtype
    found_dtype, found = gradients(enabled=True)
    assert found_dtype == plain_dtype
    exact = gradients(enabled=False)[1]
    # One that nearly cancels has the error of what it is the sum of.
    largest = max(b.abs().max() for b in exact)
    for a, b in zip(found, exact, strict=True):
        scale = b.abs().max() + 0.02 * largest
        assert (a - b).abs().max() < 0.3 * scale


@only_torch
def test_a_loop_by_hand_under_autocast_learns(rng):
    import torch

    model = models.mlp()
    keras_ether.apply(model, trainable=["head"], rank_blocks=2, seed=0)
    x = torch.tensor(models.inputs_of("mlp", rng))
    y = torch.arange(len(x)) % 4
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], 0.05
    )
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x, training=True)
            loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@only_tensorflow
@pytest.mark.parametrize(
    ("kind", "method"), kinds.sweep(*METHODS, kinds=SOME_KINDS)
)
def test_a_tape_of_a_tape(kind, method, rng):
    import tensorflow as tf

    model, x = adapted(kind, method, rng), kinds.inputs_of(kind, rng)
    variables = [v.value for v in model.trainable_variables]

    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True) ** 2)
        return tape.gradient(loss, variables)

    with tf.GradientTape() as outer:
        total = sum(tf.reduce_sum(g**2) for g in gradients())
    found = outer.gradient(total, variables[0])
    direction = tf.constant(rng.standard_normal(found.shape).astype("float32"))
    start = tf.identity(variables[0])

    def total_at(step):
        variables[0].assign(start + step * direction)
        return sum(float(tf.reduce_sum(g**2)) for g in gradients())

    expected = (total_at(1e-2) - total_at(-1e-2)) / 2e-2
    along = float(tf.reduce_sum(found * direction))
    np.testing.assert_allclose(along, expected, rtol=5e-2, atol=1e-3)


@only_tensorflow
@pytest.mark.parametrize("kind", ["dense", "conv2d"])
def test_forward_accumulators(kind, rng):
    import tensorflow as tf

    model, x = adapted(kind, "ether+", rng), kinds.inputs_of(kind, rng)
    variables = [v.value for v in model.trainable_variables]
    directions = directions_of(model, rng)
    tangents = [tf.constant(d) for d in directions]
    with tf.autodiff.ForwardAccumulator(variables, tangents) as accumulator:
        loss = tf.reduce_mean(model(x, training=True) ** 2)
    expected = numeric_derivative(model, x, directions)
    np.testing.assert_allclose(
        accumulator.jvp(loss), expected, rtol=2e-2, atol=1e-3
    )


def model_of_sparse_inputs():
    inputs = keras.Input((16,), sparse=True)
    x = keras.layers.Dense(8, "tanh", name="target")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


@pytest.mark.skipif(BACKEND == "torch", reason="no sparse tensors in Keras")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [False, True])
def test_sparse_inputs_of_dense(training, method, rng):
    model = model_of_sparse_inputs()
    kinds.adapt(model, method, rng)
    dense = rng.standard_normal((4, 16)) * (rng.random((4, 16)) < 0.3)
    dense = dense.astype("float32")
    found = models.values([model(sparse(dense), training=training)])[0]
    keras_ether.merge(model)
    expected = models.values([model(sparse(dense))])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="no sparse tensors in Keras")
def test_sparse_inputs_train(rng):
    model = model_of_sparse_inputs()
    keras_ether.apply(
        model, targets=["target"], rank_blocks=2, trainable=["head"]
    )
    dense = rng.standard_normal((4, 16)).astype("float32")
    vectors = model.get_layer("target").ether.vectors["input_u"]
    (before,) = models.values([vectors])
    model.compile(
        keras.optimizers.SGD(0.1), "mse", run_eagerly=True, jit_compile=False
    )
    # A learned strength starts at zero: the vectors move from the second step.
    for _ in range(2):
        model.train_on_batch(sparse(dense), np.ones((4, 2), "float32"))
    assert np.abs(models.values([vectors])[0] - before).max() > 1e-6


def sparse(array):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(array)
    from jax.experimental import sparse as jax_sparse

    return jax_sparse.BCOO.fromdense(array)


DTYPES = ["uint8", "bool", "int32", "bfloat16", "int8", "float16", "float64"]


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("kind", "dtype"),
    kinds.sweep(
        *DTYPES, kinds=[k for k in kinds.LAYERS if k not in kinds.EMBEDDINGS]
    )
    + [
        (kind, dtype)
        for kind in ("dense", "einsum", "conv2d")
        for dtype in ("uint8", "int32", "bool")
    ],
)
def test_inputs_of_any_dtype(kind, dtype, rng):
    """Where the plain layer takes them, an adapted one is its merged self."""
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX makes them float32")
    model = kinds.model_of(kind, dtype=dtype)
    _, shape = kinds.LAYERS[kind]
    x = ops.cast(rng.integers(0, 2, (4, *shape)), dtype)
    try:
        base = models.call(model, x)
    except Exception as error:
        pytest.skip(f"the plain layer does not: {type(error).__name__}")
    method = "ether+" if dtype in ("uint8", "int32") else "ether"
    layer = kinds.adapt(model, method, rng)
    (before,) = models.values([next(iter(layer.ether.vectors.values()))])
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-3
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    model.train_on_batch(x, np.ones((4, 2), "float32"))
    (after,) = models.values([next(iter(layer.ether.vectors.values()))])
    assert np.abs(after - before).max() > 1e-6
    active = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integers_under_a_policy_of_16_bits(dtype, policy, rng):
    inputs = keras.Input((8,), dtype=dtype)
    layer = keras.layers.Dense(8, name="target", dtype=policy)
    model = keras.Model(
        inputs, keras.layers.Dense(2, name="head")(layer(inputs))
    )
    plain = model.layers[1](ops.ones((4, 8), dtype)).dtype
    keras_ether.apply(model, targets=["target"], trainable=["head"])
    x = ops.cast(rng.integers(0, 2, (4, 8)), dtype)
    assert model.get_layer("target")(x).dtype == plain
    active = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=0.1)
