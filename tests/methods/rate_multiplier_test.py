"""A rate multiplier is a rate that many times as high, and nothing else."""

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether import methods
from keras_ether.layers import EtherDense
from keras_ether.saving import adapter_file
from tests import checks
from tests import models
from tests import tuned

# A power of two scales floats exactly.
K, RATE = 64.0, 1e-3

optimizers = keras.optimizers
# A multiplier's optimizer, and the equal one without a multiplier.
EQUAL = {
    "Adam": (
        optimizers.Adam(RATE, epsilon=K * 1e-7),
        optimizers.Adam(K * RATE),
    ),
    "Adam, amsgrad, averaged": (
        optimizers.Adam(RATE, epsilon=K * 1e-7, amsgrad=True, use_ema=True),
        optimizers.Adam(K * RATE, amsgrad=True, use_ema=True),
    ),
    "AdamW": (
        optimizers.AdamW(RATE, epsilon=K * 1e-7, weight_decay=0.4),
        optimizers.AdamW(K * RATE, weight_decay=0.4 / K),
    ),
    "Adam, clipped": (
        optimizers.Adam(RATE, epsilon=K * 1e-7, clipnorm=1e-2 * K),
        optimizers.Adam(K * RATE, clipnorm=1e-2),
    ),
    "RMSprop": (
        optimizers.RMSprop(RATE, epsilon=K * K * 1e-7),
        optimizers.RMSprop(K * RATE),
    ),
    "Lion": (optimizers.Lion(RATE), optimizers.Lion(K * RATE)),
    # Its step is proportional to the gradient, which is K times larger.
    "SGD": (
        optimizers.SGD(RATE, momentum=0.9),
        optimizers.SGD(K * K * RATE, momentum=0.9),
    ),
}


def model_of(multiplier, method):
    layer = EtherDense(
        12,
        rank_blocks=2,
        method=method,
        strength="learned",
        rate_multiplier=multiplier,
        kernel_initializer=keras.initializers.GlorotUniform(seed=1),
        seed=0,
    )
    return keras.Sequential([keras.Input((8,)), layer])


def fit(model, optimizer, rng):
    optimizer = type(optimizer).from_config(optimizer.get_config())
    x = rng.standard_normal((64, 8)).astype("float32")
    y = np.sin(3.0 * x[:, :1] + np.arange(12, dtype="float32"))
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    optimizer.finalize_variable_values(model.trainable_variables)
    return model(x)


@pytest.mark.parametrize("method", ["ether", "ether+", "oft"])
@pytest.mark.parametrize("name", EQUAL)
def test_equal_rates(name, method):
    scaled, plain = model_of(K, method), model_of(1.0, method)
    outputs = [
        fit(model, optimizer, np.random.default_rng(0))
        for model, optimizer in zip((scaled, plain), EQUAL[name], strict=True)
    ]
    ours, theirs = map(keras.ops.convert_to_numpy, outputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    pairs = zip(scaled.trainable_weights, plain.trainable_weights, strict=True)
    for one, other in pairs:
        ours, theirs = models.values([one, other])
        np.testing.assert_allclose(K * ours, theirs, rtol=1e-3, atol=1e-4)
    start = models.values(model_of(1.0, method).trainable_weights)
    moved = models.values(plain.trainable_weights)
    assert all(
        np.abs(a - b).max() > 1e-3 for a, b in zip(start, moved, strict=True)
    )


@pytest.mark.once
def test_a_network_of_many_kernels_has_a_smaller_one():
    found = [methods.rate_multiplier(n) for n in (1, 36, 90, 210, 3600)]
    np.testing.assert_allclose(found, [100.0, 50.0, 20.0, 1800 / 210, 0.5])


def adapters(model):
    return [row.config for row in keras_ether.summary(model, print_fn=str).rows]


@pytest.mark.once
def test_it_is_that_of_all_adapted_kernels():
    arguments = {"method": "ether", "rank_blocks": 2, "strength": "learned"}
    model = models.functional()
    planned = keras_ether.plan(
        model, trainable=["head"], print_fn=str, **arguments
    )
    keras_ether.apply(model, trainable=["head"], **arguments)
    assert {c.rate_multiplier for c in adapters(model)} == {100.0}
    assert [row.config for row in planned.rows] == adapters(model)


@pytest.mark.once
def test_without_a_learned_strength_there_is_none():
    for strength in (None, 0.5):
        model = tuned.base("mlp")
        keras_ether.apply(
            model, method="ether", trainable=["head"], strength=strength
        )
        assert {c.rate_multiplier for c in adapters(model)} == {1.0}


def test_weights_files_keep_what_they_mean(rng, tmp_path):
    """A file from before there was one, and into another network's."""
    x = rng.standard_normal((4, 8)).astype("float32")
    path = tmp_path / "m.weights.h5"
    for saved, own in ((1.0, 50.0), (50.0, 1.0), (20.0, 50.0)):
        model, other = model_of(saved, "ether+"), model_of(own, "ether+")
        tuned.move(model.trainable_weights, 1)
        model.save_weights(path)
        other.load_weights(path)
        np.testing.assert_allclose(
            models.call(other, x), models.call(model, x), atol=1e-5
        )


def learned(model, seed=0, **arguments):
    return keras_ether.apply(
        *(model, 2, "ether"),
        strength="learned",
        seed=seed,
        trainable=["head"],
        **arguments,
    )


def in_two_steps(model, seed=0):
    for name in ("first", "second"):
        learned(model, seed, targets=[name])
    return model


@pytest.mark.parametrize(
    "ways", [(in_two_steps, learned), (learned, in_two_steps)]
)
def test_adapter_files_keep_what_they_mean(ways, rng, monkeypatch, tmp_path):
    # Few kernels would all have the largest one.
    monkeypatch.setattr(methods.strength, "LARGEST", 1e4)
    path = tmp_path / "m.ether.safetensors"
    model, other = (
        make(tuned.base("mlp"), seed) for seed, make in enumerate(ways)
    )
    one, two = adapters(model), adapters(other)
    assert one[0].rate_multiplier != two[0].rate_multiplier
    tuned.move(model.trainable_weights, 1)
    x = models.inputs_of("mlp", rng)
    expected = models.call(model, x)
    keras_ether.save_adapter(model, path)
    keras_ether.load_adapter(other, path)
    assert adapters(other) == two
    np.testing.assert_allclose(models.call(other, x), expected, atol=1e-5)


@pytest.mark.once
def test_training_and_banks_of_another_one_are_refused(tmp_path):
    path = tmp_path / "m.ether.safetensors"
    model = learned(tuned.base("mlp"))
    model.compile(keras.optimizers.Adam(), "mse")
    checkpoint = keras_ether.callbacks.AdapterCheckpoint(path)
    x = np.ones((4, 16), "float32")
    y = model.predict(x, verbose=0)
    model.fit(x, y, verbose=0, callbacks=[checkpoint])
    content = adapter_file.read(path)
    for group in content.header["adapters"]:
        assert group["rate_multiplier"] == 100.0
        group["rate_multiplier"] = 7.0
    adapter_file.write(path, content)
    before = checks.state(model)
    with pytest.raises(ValueError, match=r"multiplier=100, in the file 7"):
        keras_ether.callbacks.resume(model, path)
    checks.unchanged(model, before)
    bank = keras_ether.AdapterBank(model, capacity=2)
    with pytest.raises(
        ValueError, match=r"multiplier=100. Received: .*multiplier=7"
    ):
        bank.add("a", path)
    other = keras_ether.load_adapter(tuned.base("mlp"), path)
    assert {c.rate_multiplier for c in adapters(other)} == {7.0}


@pytest.mark.once
@pytest.mark.parametrize(
    ("multiplier", "strength", "text"),
    [
        (0.0, "learned", "positive number. Received: rate_multiplier=0.0"),
        ("50", "learned", "positive number. Received: rate_multiplier='50'"),
        (50.0, None, "must be 1 otherwise. Received: rate_multiplier=50.0"),
    ],
)
def test_bad_values(multiplier, strength, text):
    with pytest.raises(ValueError, match=text):
        EtherDense(4, strength=strength, rate_multiplier=multiplier)


@pytest.mark.once
def test_layers_on_their_own():
    layer = EtherDense(4, strength="learned")
    config = layer.get_config()
    assert config["rate_multiplier"] == 20.0
    assert EtherDense(4).get_config()["rate_multiplier"] == 1.0
    del config["rate_multiplier"]
    older = EtherDense.from_config(config)
    assert older.ether.config.rate_multiplier == 1.0


@pytest.mark.parametrize(
    ("policy", "clip"),
    [
        ("float32", {"global_clipnorm": 1.0}),
        ("float32", {"global_clipnorm": 1e-2}),
        ("mixed_float16", {}),
    ],
    indirect=["policy"],
)
def test_clipping_and_half_precision_do_no_harm(policy, clip):
    """The vectors' gradients are larger than the head's."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 16)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((16, 4))).astype("float32")
    found = []
    for name, arguments in (("float32", {}), (policy, clip)):
        keras.config.set_dtype_policy(name)
        keras.utils.set_random_seed(0)
        model = models.mlp()
        keras_ether.apply(model, rank_blocks=2, trainable=["head"], seed=0)
        optimizer = keras.optimizers.Adam(**arguments)
        model.compile(optimizer, "mse", run_eagerly=True)
        history = model.fit(
            x, y, batch_size=16, epochs=4, shuffle=False, verbose=0
        )
        first, *_, last = history.history["loss"]
        found.append(last)
        assert last < 0.9 * first
    assert found[1] < 1.2 * found[0]
    if policy == "mixed_float16":
        # No step was skipped, since no gradient overflowed.
        assert int(model.optimizer.inner_optimizer.iterations) == 32
