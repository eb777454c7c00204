"""Models that do not keep the examples of a batch apart are refused.

`fuzz_test.py` has more of them.
"""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.bank import trial
from tests import models
from tests import tuned
from tests.bank import banks
from tests.bank.banks import Around
from tests.bank.banks import turned

L = keras.layers
BACKEND = keras.backend.backend()
# Sizes of batches in a trial: what is as long as one of them would look like
# the batch.
FIVE, SEVEN = trial.SIZES[:2]
pytestmark = pytest.mark.filterwarnings("ignore:.*last linear layer")


def around(function, length=FIVE):
    """A model whose Dense layer is called by a function of its inputs."""
    keras.utils.set_random_seed(0)
    return banks.chain(
        (length, 8),
        Around(function, name="made"),
        L.GlobalAveragePooling1D(),
        L.Dense(3, name="head"),
        targets=["inner"],
    )


def plainly(x, inner):
    return inner(x)


def averaged_behind(x, inner):
    y = inner(x)
    return y + ops.mean(y, axis=0, keepdims=True)


@pytest.mark.parametrize("length", [FIVE, SEVEN])
def test_what_is_averaged_behind_a_layer_is_refused(length):
    model = around(averaged_behind, length)
    with (
        banks.unchanged(*model.variables),
        pytest.raises(ValueError, match=r"'made/inner'"),
    ):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_the_first_layer_that_differs_is_named():
    functions = (plainly, turned, turned)
    model = banks.chain(
        (6, 8),
        *(Around(f, name=f"made{i}") for i, f in enumerate(functions)),
        L.Dense(3, name="head"),
    )
    with pytest.raises(ValueError, match=r"layer 'made1/inner' gave other"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_in_16_bits_one_layer_of_many_is_found():
    def residual(i):
        made = Around(turned if i == 10 else plainly, name=f"made{i}")
        return lambda x: L.Add()([x, made(x)])

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = banks.chain(
            (6, 8), *map(residual, range(12)), L.Dense(3, name="head")
        )
    finally:
        keras.config.set_dtype_policy(before)
    with pytest.raises(ValueError, match="'made10/inner'"):
        keras_ether.AdapterBank(model, 2)


def recorded():
    """A function that records the first call of a layer."""
    known = {}

    def run(x, inner):
        if not known:
            known[0] = banks.recorded(inner)
        return known[0](x)

    return run


@pytest.mark.skipif(BACKEND == "torch", reason="it runs models as they are")
def test_a_function_recorded_before():
    """It holds the model's own vectors, whoever asks."""
    model = around(recorded())
    for size in (1, *trial.SIZES):
        models.call(model, np.zeros((size, FIVE, 8), "float32"))
    with pytest.raises(ValueError, match=r"'made/inner'|do not depend"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.skipif(BACKEND == "torch", reason="it runs models as they are")
def test_a_function_recorded_by_the_trial(rng):
    """Each call has other examples, and it would answer by the first ones'.

    The model still answers by its own vectors, in batches of all sizes.
    """
    model, same = around(recorded()), around(plainly)
    with pytest.raises(ValueError, match=r"inner|traced before"):
        keras_ether.AdapterBank(model, 2)
    for size in (2, *trial.SIZES[:3]):
        x = rng.standard_normal((size, FIVE, 8)).astype("float32")
        np.testing.assert_allclose(
            models.call(model, x), models.call(same, x), atol=1e-5
        )


def test_a_layer_that_is_skipped_in_a_later_call(rng):
    skips = []
    bank = keras_ether.AdapterBank(
        around(lambda x, inner: x if skips else inner(x)), 2
    )
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

    bank = keras_ether.AdapterBank(around(run, None), 2)

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


class OnlyInTraining(Around):
    def call(self, x, training=None):
        return self.function(x, self.inner) if training else self.inner(x)


@pytest.mark.parametrize("function", [turned, averaged_behind])
def test_models_that_mix_examples_while_they_train(function, rng):
    model = banks.chain(
        (FIVE, 8),
        OnlyInTraining(function, name="made"),
        L.Dropout(0.5),
        L.Dense(3, name="head"),
    )
    bank = keras_ether.AdapterBank(model, 2)
    for name in "ab":
        bank.add(name)
    bank.model.compile("sgd", "mse", jit_compile="auto")
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    y = np.zeros((4, FIVE, 3), "float32")
    batch = banks.with_ids(x, bank.ids([*"abba"]))
    bank.model.evaluate(batch, y, verbose=0)
    with banks.unchanged(*bank.model.trainable_variables):
        for use in (bank.model.train_on_batch, bank.model.fit):
            with pytest.raises(ValueError, match="'made/inner' gave other"):
                use(batch, y)


class WithoutTraining(keras.Model):
    """Its `call` takes no `training`, so Keras never trains its dropout."""

    def __init__(self):
        super().__init__()
        self.body = L.Dense(8, name="body")
        self.body.build((None, FIVE, 8))
        self.dropout = L.Dropout(0.5)
        self.head = L.Dense(3, name="head")
        self.head.build((None, FIVE, 8))
        self.built = True

    def call(self, x):
        return self.head(self.dropout(self.body(x)))


def with_dropout(seed):
    return banks.chain(
        (FIVE, 8),
        L.Dense(8),
        L.Dropout(0.5, seed=1),
        L.GaussianNoise(0.5),
        L.Dense(3, name="head"),
        seed=seed,
        dropout=0.5,
    )


def without_training(seed):
    model = keras_ether.apply(
        WithoutTraining(),
        rank_blocks=2,
        targets=["body"],
        trainable=["head"],
        dropout=0.5,
        seed=0,
    )
    tuned.move(model.trainable_weights, seed)
    return model


@pytest.mark.parametrize("make", [with_dropout, without_training])
def test_dropout_trains_as_alone(make, rng):
    """Of the base and of adapters. It draws the same."""
    x = rng.standard_normal((4, FIVE, 8)).astype("float32")
    y = np.zeros((4, FIVE, 3), "float32")
    alone = banks.made(make, 1)
    bank = keras_ether.AdapterBank(banks.made(make, banks.HOST), 2, trial=x)
    bank.add("a", banks.made(make, 1))
    batch = banks.with_ids(x, bank.ids(["a"] * 4))
    for model in (bank.model, alone):
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile="auto")
    for _ in range(2):
        found = bank.model.train_on_batch(batch, y)
        np.testing.assert_allclose(found, alone.train_on_batch(x, y), rtol=1e-4)
        found = bank.predict(x, ["a"] * 4)
        wanted = alone.predict(x, verbose=0)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


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

    return keras_ether.apply(
        Model(), rank_blocks=2, targets=["body"], trainable=["head"], seed=0
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


def test_a_trial_that_raises_is_that_error():
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


def test_a_trial_changes_nothing():
    """No seed, no statistics, no values."""
    model = banks.chain(
        (6, 8),
        L.Dense(8),
        L.Dropout(0.5, seed=1),
        L.BatchNormalization(),
        L.Dense(3, name="head"),
    )
    with banks.unchanged(*model.variables):
        keras_ether.AdapterBank(model, 2)


class Noisy(L.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)


@pytest.mark.once
@pytest.mark.parametrize(
    ("before", "behind", "message"),
    [
        ([], lambda y: y > 0, "dtype bool does not have"),
        ([], lambda y: [y, ops.mean(y, 0)], "the batch as its first axis"),
        ([], ops.zeros_like, "do not depend on its adapters"),
        # Without an adapter's help, before the first one.
        ([lambda x: x + ops.mean(x, 0)], ops.copy, "changed with the other"),
        ([lambda x: Noisy()(x)], ops.copy, "or draw random numbers"),
    ],
)
def test_outputs_that_no_bank_can_have(before, behind, message):
    model = banks.chain(
        (6, 8),
        *before,
        L.Dense(3, name="head"),
        behind,
        targets=["head"],
        trainable=None,
        rank_blocks=1,
    )
    with pytest.raises(ValueError, match=message):
        keras_ether.AdapterBank(model, 2)


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
    model = banks.chain(
        (8,),
        L.Dense(8, name="a"),
        Experts(name="experts"),
        L.Dense(3, name="head"),
        targets=["a"],
    )
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
    BACKEND == "torch", reason="Shapes are inferred by calls with values."
)
def test_a_stateless_call_needs_a_trial_before():
    bank = keras_ether.AdapterBank(around(plainly), 2)

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
        model = banks.chain(
            (8,),
            L.Lambda(function),
            L.Dense(8, activation="tanh"),
            L.Dense(3, name="head"),
        )
        x = np.random.default_rng(seed).normal(size=(9, 8)).astype("float32")
        with pytest.raises(ValueError, match="changed with the other examples"):
            keras_ether.AdapterBank(model, 2, trial=x)


@pytest.mark.once
def test_growing_batches_have_a_trial_for_each_power_of_two(monkeypatch):
    bank = keras_ether.AdapterBank(around(plainly), 2)
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
def test_quantized_bases_pass_a_coarser_trial():
    model = tuned.base("mlp")
    for name in ("first", "second"):
        model.get_layer(name).quantize("int8")
    keras_ether.apply(
        model, rank_blocks=2, targets=["first", "second"], trainable=["head"]
    )
    keras_ether.AdapterBank(model, 2)
