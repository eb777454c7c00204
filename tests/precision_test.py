"""Every dtype policy that Keras trains in."""

import keras
import numpy as np
import pytest

import keras_ether
from tests import checks
from tests import models
from tests.tuned import vectors_of

POLICIES = [
    "float32",
    "mixed_bfloat16",
    "mixed_float16",
    "bfloat16",
    pytest.param("float16", marks=pytest.mark.nightly),
]
METHODS = ["ether", "ether+"]


@pytest.mark.by_turns
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", POLICIES, indirect=True)
def test_fit(policy, method, rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    base = models.call(model, x)
    keras_ether.apply(
        model, method=method, rank_blocks=2, seed=0, trainable=["head"]
    )
    if method == "ether+":
        np.testing.assert_array_equal(models.call(model, x), base)
    before = models.values(vectors_of(model))
    eagerly = models.EAGERLY and method == "ether"
    history = models.compile_and_fit(model, x, run_eagerly=eagerly)
    assert np.all(np.isfinite(history.history["loss"]))
    for vector, value in zip(vectors_of(model), before, strict=True):
        assert vector.dtype == "float32"
        now = models.values([vector])[0]
        assert np.all(np.isfinite(now))
        assert np.abs(now - value).max() > 1e-4
    active = models.call(model, x).astype("float32")
    keras_ether.merge(model)
    merged = models.call(model, x).astype("float32")
    tolerance = 1e-5 if policy == "float32" else 0.1
    np.testing.assert_allclose(merged, active, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_step_whose_gradients_overflow_is_skipped(policy, method, rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng, samples=4)
    keras_ether.apply(
        model, method=method, rank_blocks=2, seed=0, trainable=["head"]
    )
    before = models.values(vectors_of(model))
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), initial_scale=2.0**60
    )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    labels = np.arange(4) % 4
    model.fit(x, labels, epochs=1, verbose=0)
    checks.equal(vectors_of(model), before)
    scale = float(models.values([optimizer.dynamic_scale])[0])
    assert scale == 2.0**59
    optimizer.dynamic_scale.assign(2.0**10)
    model.fit(x, labels, epochs=2, verbose=0)
    for now, value in zip(
        models.values(vectors_of(model)), before, strict=True
    ):
        assert np.all(np.isfinite(now))
        assert np.abs(now - value).max() > 1e-4


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_loss_scaling_of_a_compiled_model_starts_anew(policy, rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    # Keras scales the loss by itself under this policy.
    models.compile_and_fit(model, x, epochs=1, run_eagerly=False)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    keras_ether.apply(model, rank_blocks=2, trainable=["head"])
    before = models.values(vectors_of(model))
    history = model.fit(x, np.arange(len(x)) % 4, epochs=2, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert np.all(np.isfinite(history.history["loss"]))
    for now, value in zip(
        models.values(vectors_of(model)), before, strict=True
    ):
        assert np.abs(now - value).max() > 1e-4


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no float64 unless told"
)
@pytest.mark.filterwarnings("ignore:.*is frozen now")
def test_kernel_of_float64_is_not_rounded_to_float32(tmp_path):
    """An adapter at its start changes no bit of the kernel."""
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, dtype="float64")]
    )
    before = model.get_weights()
    keras_ether.apply(model, method="ether+", rank_blocks=2)
    keras_ether.save_adapter(model, tmp_path / "m.safetensors")
    keras_ether.merge(model)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    keras_ether.blend(model, {tmp_path / "m.safetensors": 0.5})
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no float64 unless told"
)
@pytest.mark.parametrize("method", [*METHODS, "oft"])
def test_float64(method, rng):
    model = models.bert_backbone(dtype="float64")
    keras_ether.apply(
        model, method=method, targets="all-linear", rank_blocks=2, seed=0
    )
    for i, weight in enumerate(model.trainable_weights):
        weight.assign_add(0.1 * keras.random.normal(weight.shape, seed=i))
    x = models.inputs_of("bert", rng)
    active = model(x, training=False)["sequence_output"]
    assert keras.backend.standardize_dtype(active.dtype) == "float64"
    keras_ether.merge(model)
    merged = model(x, training=False)["sequence_output"]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(active),
        keras.ops.convert_to_numpy(merged),
        atol=1e-6,
    )
