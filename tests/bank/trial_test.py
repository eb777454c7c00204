"""Models that do not keep the examples of a batch apart are refused."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.bank import trial
from tests import models
from tests import tuned
from tests.bank import banks

L = keras.layers
BACKEND = keras.backend.backend()
# Sizes of batches in a trial: what is as long as one of them would look like
# the batch.
FIVE, SEVEN = trial.SIZES[:2]
pytestmark = pytest.mark.filterwarnings("ignore:.*last linear layer")


class Made(L.Layer):
    """A layer that calls another within a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(8, activation="tanh", name="inner")
        self.inner.build((None, 8))
        self.function = function
        self.built = True

    def call(self, x):
        return self.function(x, self.inner)

    def compute_output_shape(self, shape):
        return shape


def around(function, length=FIVE):
    """A model whose Dense layer is called by a function of its inputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((length, 8))
    x = Made(function, name="made")(inputs)
    x = L.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    return keras_ether.apply(
        model, rank_blocks=2, targets=["inner"], trainable=["head"], seed=0
    )


def time_first(x, inner):
    return ops.swapaxes(inner(ops.swapaxes(x, 0, 1)), 0, 1)


def folded(x, inner):
    rows = inner(ops.reshape(x, (-1, 8)))
    return ops.reshape(rows, ops.shape(x))


def turned(x, inner):
    return ops.flip(inner(ops.flip(x, axis=0)), axis=0)


def sorted_by_size(x, inner):
    order = ops.argsort(ops.sum(x, axis=(1, 2)))
    back = ops.argsort(order)
    return ops.take(inner(ops.take(x, order, axis=0)), back, axis=0)


def halves_changed(x, inner):
    half = ops.shape(x)[0] // 2
    x = ops.concatenate([x[half:], x[:half]])
    y = inner(x)
    rest = ops.shape(x)[0] - half
    return ops.concatenate([y[rest:], y[:rest]])


def one_by_one(x, inner):
    return ops.vectorized_map(inner, x)


def averaged(x, inner):
    return inner(x) + ops.mean(x, axis=0, keepdims=True)


def averaged_behind(x, inner):
    y = inner(x)
    return y + ops.mean(y, axis=0, keepdims=True)


MIXING = {
    "time first": time_first,
    "folded": folded,
    "turned": turned,
    "sorted": sorted_by_size,
    "halves changed": halves_changed,
    "one by one": one_by_one,
    "averaged behind": averaged_behind,
}


@pytest.mark.parametrize("length", [FIVE, SEVEN])
@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_models_that_mix_examples_are_refused(function, length):
    if function is one_by_one and BACKEND == "tensorflow":
        pytest.skip("Keras's `vectorized_map` takes no layer there")
    model = around(function, length)
    before = models.values(model.variables)
    names = set(vars(model.get_layer("head")))
    with pytest.raises(ValueError, match=r"'.*inner'"):
        keras_ether.AdapterBank(model, 2)
    for a, b in zip(before, models.values(model.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(vars(model.get_layer("head"))) == names


@pytest.mark.once
def test_the_first_layer_that_differs_is_named():
    inputs = keras.Input((6, 8))
    x = inputs
    for i, function in enumerate([lambda x, y: y(x), turned, turned]):
        x = Made(function, name=f"made{i}")(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(model, rank_blocks=2, trainable=["head"], seed=0)
    with pytest.raises(ValueError, match=r"layer 'made1/inner' gave other"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_in_16_bits_one_layer_of_many_is_found():
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((6, 8))
        x = inputs
        for i in range(12):
            function = turned if i == 10 else lambda x, inner: inner(x)
            x = L.Add()([x, Made(function, name=f"made{i}")(x)])
        model = keras.Model(inputs, L.Dense(3, name="head")(x))
    finally:
        keras.config.set_dtype_policy(before)
    keras_ether.apply(model, rank_blocks=2, trainable=["head"], seed=0)
    with pytest.raises(ValueError, match="'made10/inner'"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.skipif(BACKEND == "torch", reason="it runs models as they are")
def test_a_function_recorded_before():
    """It holds the model's own vectors, whoever asks."""
    recorded = {}

    def run(x, inner):
        if not recorded:
            recorded[0] = as_users_record(lambda x: inner(x))
        return recorded[0](x)

    model = around(run)
    for size in (1, *trial.SIZES):
        models.call(model, np.zeros((size, FIVE, 8), "float32"))
    with pytest.raises(ValueError, match=r"'made/inner'|do not depend"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.skipif(BACKEND == "torch", reason="it runs models as they are")
def test_a_function_recorded_by_the_trial(rng):
    """Each call has other examples, and it would answer by the first ones'."""

    recorded = {}

    def run(x, inner):
        if not recorded:
            recorded[0] = as_users_record(lambda x: inner(x))
        return recorded[0](x)

    with pytest.raises(
        ValueError, match=r"inner|does not compute each|traced before"
    ):
        bank = keras_ether.AdapterBank(around(run), 2)
        bank.add("a")
        x = rng.standard_normal((4, FIVE, 8)).astype("float32")
        for names in (["a"] * 4, [None] * 4):
            banks.call(bank, x, names)


@pytest.mark.skipif(BACKEND == "torch", reason="it runs models as they are")
def test_a_trial_leaves_nothing_in_a_recorded_function(rng):
    """The model still answers by its own vectors, in batches of all sizes."""
    recorded = {}

    def run(x, inner):
        if not recorded:
            recorded[0] = as_users_record(lambda x: inner(x))
        return recorded[0](x)

    model = around(run)
    same = around(lambda x, inner: inner(x))
    with pytest.raises(ValueError, match=r"inner|traced before"):
        keras_ether.AdapterBank(model, 2)
    for size in (2, *trial.SIZES[:3]):
        x = rng.standard_normal((size, FIVE, 8)).astype("float32")
        np.testing.assert_allclose(
            models.call(model, x), models.call(same, x), atol=1e-5
        )


def as_users_record(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function)


def test_a_layer_that_is_skipped_in_a_later_call(rng):
    skips = []

    def run(x, inner):
        return x if skips else inner(x)

    bank = keras_ether.AdapterBank(around(run), 2)
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    banks.call(bank, x, [None] * 4)
    skips.append(True)
    batch = banks.with_ids(x, bank.ids([None] * 4))
    with pytest.raises(ValueError, match=r"'made/inner' used .* 0 times"):
        bank.model(batch)
    with pytest.raises(ValueError, match=r"'made/inner' used .* 0 times"):
        bank.model.predict(batch, verbose=0)


def test_other_lengths_have_a_trial_of_their_own(rng):
    def run(x, inner):
        return turned(x, inner) if x.shape[1] == 9 else inner(x)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 8))
    x = L.GlobalAveragePooling1D()(Made(run, name="made")(inputs))
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(
        model, rank_blocks=2, targets=["inner"], trainable=["head"]
    )
    bank = keras_ether.AdapterBank(model, 2)

    def batch(length):
        x = rng.standard_normal((4, length, 8)).astype("float32")
        return banks.with_ids(x, bank.ids([None] * 4))

    bank.model(batch(6))
    for use in (
        bank.model,
        bank.model.predict_on_batch,
        lambda x: bank.model.predict(x, verbose=0),
    ):
        with pytest.raises(ValueError, match="'made/inner' gave other"):
            use(batch(9))


class OnlyInTraining(Made):
    def call(self, x, training=None):
        return self.function(x, self.inner) if training else self.inner(x)


@pytest.mark.parametrize("function", [turned, averaged_behind])
def test_models_that_mix_examples_while_they_train(function, rng):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((FIVE, 8))
    x = OnlyInTraining(function, name="made")(inputs)
    model = keras.Model(inputs, L.Dense(3, name="head")(L.Dropout(0.5)(x)))
    keras_ether.apply(
        model, rank_blocks=2, targets=["inner"], trainable=["head"], seed=0
    )
    bank = keras_ether.AdapterBank(model, 2)
    for name in "ab":
        bank.add(name)
    bank.model.compile("sgd", "mse", jit_compile="auto")
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    y = np.zeros((4, FIVE, 3), "float32")
    batch = banks.with_ids(x, bank.ids([*"abba"]))
    bank.model.evaluate(batch, y, verbose=0)
    before = models.values(bank.model.trainable_variables)
    for use in (bank.model.train_on_batch, bank.model.fit):
        with pytest.raises(ValueError, match="'made/inner' gave other"):
            use(batch, y)
    for a, b in zip(
        before, models.values(bank.model.trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_dropout_of_the_base_trains(rng):
    """It draws the same for adapters mixed and alone."""
    inputs = keras.Input((FIVE, 8))
    x = L.Dropout(0.5)(L.Dense(8, name="body")(inputs))
    x = L.GaussianNoise(0.5)(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"], seed=0
    )
    bank = keras_ether.AdapterBank(model, 2)
    bank.add("a")
    bank.model.compile("sgd", "mse", jit_compile="auto")
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    loss = bank.model.train_on_batch(
        banks.with_ids(x, bank.ids(["a"] * 4)), np.zeros((4, FIVE, 3))
    )
    assert np.isfinite(loss)


def subclassed(mixes):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = L.Dense(8, name="body")
            self.body.build((None, 8))
            self.head = L.Dense(3, name="head")
            self.head.build((None, 8))
            self.built = True

        def call(self, x):
            if mixes:
                x = ops.reshape(self.body(ops.reshape(x, (-1, 8))), x.shape)
            else:
                x = self.body(x)
            return self.head(ops.mean(x, axis=1))

    model = Model()
    return keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"], seed=0
    )


def test_inputs_that_can_not_be_made_up(rng):
    with pytest.raises(ValueError, match="trial=x"):
        keras_ether.AdapterBank(subclassed(False), 2)
    x = rng.standard_normal((1, 6, 8)).astype("float32")
    bank = keras_ether.AdapterBank(subclassed(False), 2, trial=x)
    bank.add("a")
    assert np.isfinite(bank.predict(np.repeat(x, 2, 0), ["a", None])).all()
    with pytest.raises(ValueError, match=r"'.*body' must be the batch"):
        keras_ether.AdapterBank(subclassed(True), 2, trial=x)


def test_a_trial_that_raises_is_that_error(rng):
    def fail(x, inner):
        if x.shape[0] == SEVEN:
            raise ValueError("not seven")
        return inner(x)

    with pytest.raises(ValueError, match="not seven"):
        keras_ether.AdapterBank(around(fail), 2)


@pytest.mark.once
def test_without_a_trial_all_layers_must_still_ask(rng):
    bank = keras_ether.AdapterBank(around(turned), 2, certify=False)
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    assert np.isfinite(banks.call(bank, x, [None] * 4)).all()
    bank = keras_ether.AdapterBank(around(lambda x, inner: x), 2, certify=False)
    with pytest.raises(ValueError, match=r"'made/inner' used .* 0 times"):
        banks.call(bank, x, [None] * 4)
    with pytest.raises(ValueError, match="certify"):
        keras_ether.AdapterBank(around(turned), 2, certify="no")


def test_a_trial_changes_nothing(rng):
    """No seed, no statistics, no values."""
    inputs = keras.Input((6, 8))
    x = L.Dense(8, name="body")(inputs)
    x = L.Dropout(0.5, seed=1)(x)
    x = L.BatchNormalization()(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"], seed=0
    )
    before = models.values(model.variables)
    keras_ether.AdapterBank(model, 2)
    for a, b in zip(before, models.values(model.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.once
def test_outputs_that_no_mark_fits_are_refused():
    inputs = keras.Input((6, 8))
    outputs = L.Dense(3, name="head")(inputs) > 0
    model = keras.Model(inputs, outputs)
    keras_ether.apply(model, rank_blocks=1, targets=["head"], seed=0)
    with pytest.raises(ValueError, match="dtype bool does not have"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_outputs_that_are_not_of_one_example_are_refused():
    inputs = keras.Input((6, 8))
    y = L.Dense(3, name="head")(inputs)
    model = keras.Model(inputs, [y, ops.mean(y, axis=0)])
    keras_ether.apply(model, rank_blocks=1, targets=["head"], seed=0)
    with pytest.raises(ValueError, match="the batch as its first axis"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_answers_that_tell_nothing():
    inputs = keras.Input((6, 8))
    y = L.Dense(3, name="head")(inputs)
    model = keras.Model(inputs, ops.zeros_like(y))
    keras_ether.apply(model, rank_blocks=1, targets=["head"], seed=0)
    with pytest.raises(ValueError, match="do not depend on its adapters"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_a_base_that_mixes_its_inputs():
    """Without an adapter's help, before the first one."""
    with pytest.raises(ValueError, match="changed with the other examples"):
        keras_ether.AdapterBank(around(averaged), 2)


class Experts(L.Layer):
    """Two experts, of which each takes some 8 examples at least."""

    def build(self, shape):
        own = {"initializer": "orthogonal", "trainable": False}
        self.router = self.add_weight(shape=(shape[-1], 2), name="r", **own)
        shape = (2, shape[-1], shape[-1])
        self.experts = self.add_weight(shape=shape, name="e", **own)

    def call(self, x):
        routes = ops.argmax(ops.matmul(x, self.router), axis=-1)
        routes = ops.one_hot(routes, 2)
        size = ops.cast(ops.shape(x)[0], "float32")
        places = ops.cumsum(routes, axis=0)
        kept = ops.cast(places <= ops.maximum(8.0, 0.35 * size), "float32")
        y = ops.einsum("bd,edf,be->bf", x, self.experts, routes * kept)
        return x + y


def test_experts_with_a_capacity(rng):
    """They mix examples in large batches alone."""
    inputs = keras.Input((8,))
    x = Experts(name="experts")(L.Dense(8, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(model, rank_blocks=2, targets=["a"], seed=0)
    bank = keras_ether.AdapterBank(model, 2)
    bank.add("alice")
    x = rng.standard_normal((64, 8)).astype("float32")
    names = ["alice", None] * 32
    assert bank.predict(x, names, batch_size=4).shape == (64, 3)
    batch = {"inputs": x, "adapter_id": bank.ids(names)}
    for use in (
        lambda: bank.predict(x, names, batch_size=64),
        lambda: bank.model(batch),
        lambda: bank.model(inputs=batch),
        lambda: bank.model.predict_on_batch(batch),
        lambda: bank.model.evaluate(batch, np.zeros((64, 3)), batch_size=64),
        lambda: bank.model.fit(batch, np.zeros((64, 3)), batch_size=64),
        lambda: bank.model.fit(
            {k: v[:8] for k, v in batch.items()},
            np.zeros((8, 3)),
            validation_data=(batch, np.zeros((64, 3))),
            validation_batch_size=64,
        ),
    ):
        bank.model.compile("adam", "mse")
        with pytest.raises(ValueError, match="each example of a batch"):
            use()


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="Shapes are inferred by calls with values.",
)
def test_a_stateless_call_needs_a_trial_before(rng):
    bank = keras_ether.AdapterBank(around(lambda x, inner: inner(x)), 2)

    def answer(size):
        trained = [v.value for v in bank.model.trainable_variables]
        other = [v.value for v in bank.model.non_trainable_variables]
        x = np.zeros((size, FIVE, 8), "float32")
        batch = {"inputs": x, "adapter_id": bank.ids([None] * size)}
        return bank.model.stateless_call(trained, other, batch)[0]

    assert answer(4).shape == (4, 3)
    with pytest.raises(ValueError, match="Call the model on such inputs first"):
        answer(40)
    x = np.zeros((40, FIVE, 8), "float32")
    bank.predict(x, [None] * 40, batch_size=40)
    assert answer(40).shape == (40, 3)


def by_largest(x):
    return x / ops.max(ops.abs(x))


def clamped(x):
    return ops.maximum(x, ops.max(x) - 1.0)


def by_size(x):
    return x / ops.cast(ops.shape(x)[0], "float32")


@pytest.mark.once
@pytest.mark.parametrize("function", [by_largest, clamped, by_size])
def test_a_base_whose_answers_depend_on_the_batch(function):
    """On its largest example, which may be any, or on their number."""
    for seed in range(4):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((8,))
        x = L.Lambda(function)(inputs)
        x = L.Dense(8, activation="tanh", name="a")(x)
        model = keras.Model(inputs, L.Dense(3, name="head")(x))
        keras_ether.apply(model, rank_blocks=2, targets=["a"])
        x = np.random.default_rng(seed).normal(size=(9, 8)).astype("float32")
        with pytest.raises(ValueError, match="changed with the other examples"):
            keras_ether.AdapterBank(model, 2, trial=x)


class Noisy(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)


@pytest.mark.once
def test_random_numbers_in_inference_are_named():
    inputs = keras.Input((8,))
    x = Noisy()(L.Dense(8, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(3, name="head")(x))
    keras_ether.apply(model, rank_blocks=2, targets=["a"])
    with pytest.raises(ValueError, match="or draw random numbers"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_growing_batches_have_a_trial_for_each_power_of_two(monkeypatch):
    model = around(lambda x, inner: inner(x))
    bank = keras_ether.AdapterBank(model, 2)
    sizes = []
    run = trial.Trial.run
    monkeypatch.setattr(
        trial.Trial,
        "run",
        lambda self, x, size: sizes.append(size) or run(self, x, size),
    )
    for size in range(1, 40):
        x = np.zeros((size, FIVE, 8), "float32")
        bank.predict(x, [None] * size, batch_size=size)
    assert sizes == [16, 32, 64]


@pytest.mark.once
def test_quantized_bases_pass_a_coarser_trial(rng):
    model = tuned.base("mlp")
    for name in ("first", "second"):
        model.get_layer(name).quantize("int8")
    keras_ether.apply(
        model, rank_blocks=2, targets=["first", "second"], trainable=["head"]
    )
    keras_ether.AdapterBank(model, 2)
