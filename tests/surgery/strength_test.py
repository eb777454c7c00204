import copy

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery import verbs
from tests import dense_oracle
from tests import kinds
from tests import models
from tests import tuned

STRENGTHS = (0.5, 2.0, -1.0)


def base_and_active(name="mlp", method="ether"):
    rng = np.random.default_rng(0)
    x = models.inputs_of(name, rng)
    model = tuned.adapted(name, method)
    return model, x, models.call(model, x)


@pytest.mark.parametrize(
    ("kind", "case"),
    kinds.sweep(
        ("ether", None),
        ("ether+", None),
        ("oft", None),
        kinds=["dense", "conv2d", "reversible"],
    ),
)
def test_the_kernel_that_it_says(kind, case, rng):
    method, side = case
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    base = models.call(model, x)
    keras_ether.apply(
        model,
        targets=["target"],
        method=method,
        side=side,
        rank_blocks=2,
        trainable=["head"],
    )
    layer = model.get_layer("target")
    kinds.randomize(layer, rng)
    whole = models.call(model, x)
    fold = layer.ether.fold
    kernel = np.array(ops.convert_to_numpy(layer.base_kernel))
    for strength in STRENGTHS:
        assert keras_ether.strength(model, strength) is model
        found = models.call(model, x)
        assert np.abs(found - whole).max() > 1e-3
        assert np.abs(found - base).max() > 1e-3
        with keras_ether.disabled(model):
            np.testing.assert_array_equal(models.call(model, x), base)
        np.testing.assert_array_equal(models.call(model, x), found)
    if side is None and method == "ether" and kind == "dense":
        vectors = {
            n: np.array(ops.convert_to_numpy(v))
            for n, v in layer.ether.vectors.items()
        }
        full = dense_oracle.effective_kernel(method, vectors, kernel)
        expected = kernel + STRENGTHS[-1] * (full - kernel)
        np.testing.assert_allclose(
            ops.convert_to_numpy(fold(kernel)), expected, atol=1e-5
        )
    merged = models.call(keras_ether.merge(model), x)
    np.testing.assert_allclose(merged, found, atol=2e-5)


def test_zero_is_the_base_to_the_bit_and_one_the_adapter():
    model, x, active = base_and_active()
    with keras_ether.disabled(model):
        base = models.call(model, x)
    keras_ether.strength(model, 0)
    np.testing.assert_array_equal(models.call(model, x), base)
    keras_ether.strength(model, 1)
    np.testing.assert_array_equal(models.call(model, x), active)


def test_within_disabled_it_takes_effect_at_the_end():
    model, x, _ = base_and_active()
    keras_ether.strength(model, 0.5)
    half = models.call(model, x)
    keras_ether.strength(model, 1.0)
    with keras_ether.disabled(model):
        base = models.call(model, x)
        with keras_ether.disabled(model):
            keras_ether.strength(model, 0.5)
            np.testing.assert_array_equal(models.call(model, x), base)
        np.testing.assert_array_equal(models.call(model, x), base)
    np.testing.assert_array_equal(models.call(model, x), half)


def test_nothing_is_compiled_again():
    model, x, _ = base_and_active("mlp")
    calls = []
    layer = next(iter(verbs.adapted_layers(model).values()))
    activation = layer.activation
    layer.activation = lambda y: (calls.append(1), activation(y))[1]
    whole = model.predict(x, verbose=0)
    traced = len(calls)
    for strength in (0.5, 0.25, -1.0):
        keras_ether.strength(model, strength)
        found = model.predict(x, verbose=0)
        np.testing.assert_allclose(found, models.call(model, x), atol=1e-5)
        calls.pop()
        assert not np.allclose(found, whole, atol=1e-3)
    if keras.backend.backend() != "torch":
        assert len(calls) == traced


def gradients(model, x):
    """What one step of plain descent at rate 1 takes from each vector."""
    vectors = tuned.vectors_of(model)
    before = models.values(vectors)
    y = np.zeros((len(x), 4), "float32")
    model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    after = models.values(vectors)
    for vector, value in zip(vectors, before, strict=True):
        vector.assign(value)
    return [a - b for a, b in zip(before, after, strict=True)]


def narrow(method="ether"):
    """One layer that is wider than high, whose blocks' inverse can be used."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32)])
    model.add(keras.layers.Dense(4, name="head"))
    tuned.move(model.trainable_weights, seed=0)
    keras_ether.apply(
        model, method=method, rank_blocks=2, trainable=["head"], seed=0
    )
    model.get_layer("head").trainable = False
    return model


@pytest.mark.parametrize("strength", STRENGTHS)
def test_gradients_hold_at_any_strength(strength):
    model = narrow()
    # Many rows, so that the kernel is folded.
    x = np.random.default_rng(0).standard_normal((64, 8)).astype("float32")
    model.compile(keras.optimizers.SGD(1.0), "mse")
    gradients(model, x)
    keras_ether.strength(model, strength)
    (found,) = gradients(model, x)
    (vector,) = tuned.vectors_of(model)
    (start,) = models.values([vector])
    step = 1e-3
    for place in ((0, 0), (1, 2)):
        losses = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * step
            vector.assign(moved)
            losses.append(np.mean(models.call(model, x).astype(float) ** 2))
        expected = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(found[place], expected, rtol=2e-2, atol=2e-3)
    vector.assign(start)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of jax.jit")
def test_a_function_traced_before_has_the_gradients_of_any_strength():
    import jax

    model = narrow()
    x = np.ones((64, 8), "float32")
    fixed = [v.value for v in model.trainable_variables]

    def gradient(trainable, others):
        def loss(trainable):
            y, _ = model.stateless_call(trainable, others, x, training=True)
            return ops.mean(ops.square(y))

        return jax.grad(loss)(trainable)

    traced = jax.jit(gradient)

    def found(function):
        others = [v.value for v in model.non_trainable_variables]
        return np.concatenate([np.ravel(g) for g in function(fixed, others)])

    whole = found(traced)
    keras_ether.strength(model, 0.5)
    half = found(traced)
    np.testing.assert_allclose(half, found(gradient), rtol=1e-4, atol=1e-6)
    assert not np.allclose(half, whole, rtol=1e-2)


def test_copies_have_it():
    model, x, _ = base_and_active("mlp")
    keras_ether.strength(model, 0.5)
    half = models.call(model, x)
    other = copy.deepcopy(model)
    np.testing.assert_allclose(models.call(other, x), half, atol=1e-6)
    keras_ether.strength(model, 0)
    other = copy.deepcopy(model)
    np.testing.assert_allclose(
        models.call(other, x), models.call(model, x), atol=1e-6
    )


def test_adapter_files_leave_it(tmp_path):
    model, x, active = base_and_active("mlp")
    keras_ether.strength(model, 0.5)
    half = models.call(model, x)
    path = tmp_path / "m.ether.safetensors"
    keras_ether.save_adapter(model, path)
    keras_ether.load_adapter(model, path)
    np.testing.assert_array_equal(models.call(model, x), half)
    fresh = tuned.base("mlp")
    keras_ether.load_adapter(fresh, path)
    np.testing.assert_allclose(models.call(fresh, x), active, atol=1e-6)


@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_weights_files_hold_the_kernel_as_it_acts(method, tmp_path):
    model, x, active = base_and_active("mlp", method)
    keras_ether.strength(model, 0.5)
    half = models.call(model, x)
    path = str(tmp_path / "m.weights.h5")
    model.save_weights(path)
    plain = tuned.base("mlp", seed=5)
    plain.load_weights(path)
    np.testing.assert_allclose(models.call(plain, x), half, atol=1e-5)
    # Over the same base: the vectors as trained, the strength of the reader.
    same = tuned.adapted("mlp", method, seed=3)
    same.load_weights(path)
    np.testing.assert_allclose(models.call(same, x), active, atol=1e-5)
    other = tuned.adapted("mlp", method, seed=3, base_seed=7)
    if method == "ether":
        with pytest.raises(ValueError, match=r"at strength 0.5, at which"):
            other.load_weights(path)
    else:
        with pytest.warns(UserWarning, match="reset to the identity"):
            other.load_weights(path)
        np.testing.assert_allclose(models.call(other, x), half, atol=1e-5)


def test_a_reader_of_another_strength_takes_out_the_whole(tmp_path):
    model, x, active = base_and_active("mlp")
    path = str(tmp_path / "m.weights.h5")
    model.save_weights(path)
    other = tuned.adapted("mlp", seed=3, base_seed=7)
    keras_ether.strength(other, 0.5)
    other.load_weights(path)
    keras_ether.strength(other, 1.0)
    np.testing.assert_allclose(models.call(other, x), active, atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("strength", [np.nan, np.inf, 1j])
def test_what_is_no_strength(strength):
    model = tuned.adapted("mlp")
    with pytest.raises(ValueError, match=r"must be a finite number.*Received"):
        keras_ether.strength(model, strength)
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        keras_ether.strength(models.mlp(), 0.5)
