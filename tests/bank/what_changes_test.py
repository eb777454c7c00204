"""What could change an answer of a bank, or a step, without a word."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import keras_ether
from tests.bank import banks

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 16)).astype("float32")
Y = RNG.normal(size=(4, 3)).astype("float32")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    # Of Keras, where a file has no optimizer.
    pytest.mark.filterwarnings("ignore:Skipping variable loading"),
    pytest.mark.filterwarnings("ignore:A total of . objects could not be"),
    # Of PyTorch's checkpoints, in a trial.
    pytest.mark.filterwarnings("ignore:None of the inputs have"),
    pytest.mark.filterwarnings("ignore:.*ran out of data"),
]


def adapted(middle=None, targets=("a", "b")):
    keras.utils.set_random_seed(0)
    return banks.chain(
        (16,),
        layers.Dense(16, activation="tanh", name="a"),
        *([middle] if middle else []),
        layers.Dense(16, activation="tanh", name="b"),
        layers.Dense(3, name="head"),
        targets=list(targets),
    )


def bank_of(model, names=("alice", "bob"), **kwargs):
    bank = keras_ether.AdapterBank(model, 3, **kwargs)
    rng = np.random.default_rng(3)
    for name in names:
        bank.add(name)
        values = {
            key: (value + rng.normal(size=value.shape)).astype("float32")
            for key, value in banks.row(bank, name).items()
        }
        bank.model.write(bank.model.table.row(name), values)
    return bank


def batch(bank, names, x=X):
    return banks.with_ids(x, bank.ids(names))


class TwoInputs(keras.Model):
    """Mixes its examples where `"audio"` is among the inputs."""

    def __init__(self):
        super().__init__()
        self.d = layers.Dense(16, name="d")
        self.h = layers.Dense(3, name="h")

    def call(self, x):
        y = self.d(x["tokens"])
        if "audio" in x:
            return self.h(ops.roll(y, 1, axis=0) + x["audio"])
        return self.h(y + x["image"])


def test_other_keys_of_the_inputs_have_a_trial_of_their_own():
    model = TwoInputs()
    image = {"tokens": X, "image": np.zeros_like(X)}
    model(image)
    keras_ether.apply(model, rank_blocks=2, targets=["d"], trainable=["h"])
    bank = bank_of(model, trial=image)
    bank.predict(image, ["alice", "bob"] * 2)
    audio = {"tokens": X, "audio": np.zeros_like(X)}
    with pytest.raises(ValueError, match="each example of a batch separately"):
        bank.predict(audio, ["alice", "bob"] * 2)


class Memory(layers.Layer):
    def build(self, shape):
        self.m = self.add_weight(
            shape=(shape[-1],), initializer="zeros", trainable=False, name="m"
        )

    def call(self, x):
        y = x + self.m
        self.m.assign(ops.mean(x, axis=0))
        return y


def test_a_layer_that_remembers_calls_is_refused():
    model = adapted(Memory(name="memory"))
    with pytest.raises(ValueError, match=r"changes its variable 'memory/m'"):
        keras_ether.AdapterBank(model, 3)


class TrainingMemory(Memory):
    def call(self, x, training=False):
        return super().call(x) if training else x + self.m


def test_a_layer_that_remembers_training_is_refused():
    """Its values would reach the base and adapters that don't train."""
    model = adapted(TrainingMemory(name="memory"))
    bank = bank_of(model)
    bank.model.compile("sgd", "mse")
    data = batch(bank, ["alice"] * 4)
    bank.predict(X, ["alice"] * 4)
    for train in (bank.model.train_on_batch, bank.model.fit):
        with (
            banks.unchanged(*bank.model.variables),
            pytest.raises(ValueError, match="changes its variable 'memory/m'"),
        ):
            train(data, Y)


def test_a_layer_thawed_after_training_has_another_trial():
    model = adapted(layers.BatchNormalization(name="bn"))
    bank = bank_of(model)
    bank.model.compile("sgd", "mse")
    data = batch(bank, ["alice", "bob"] * 2)
    # `None` is as no validation data.
    bank.model.fit(data, Y, validation_data=None, verbose=0)
    model.get_layer("bn").trainable = True
    with pytest.raises(ValueError, match="changes its variable 'bn/moving_"):
        bank.model.fit(data, Y, verbose=0)


def test_loaded_adapters_train_from_the_start(tmp_path):
    model, file = adapted(), str(tmp_path / "bank.weights.h5")
    bank = bank_of(model, ["alice"])
    bank.model.save_weights(file)
    bank.save("alice", tmp_path / "alice.ether.safetensors")
    found = []
    for loads in (True, False):
        bank = bank_of(model, ["zoe"])
        bank.model.compile("adam", "mse")
        data = batch(bank, ["zoe"] * 4)
        bank.model.fit(data, Y, epochs=5, verbose=0, shuffle=False)
        if loads:
            bank.model.load_weights(file)
        else:
            bank.add("alice", tmp_path / "alice.ether.safetensors")
        data = batch(bank, ["alice"] * 4)
        bank.model.fit(data, Y, verbose=0, shuffle=False)
        found.append(bank.predict(X, ["alice"] * 4))
    np.testing.assert_allclose(*found, atol=1e-6)


def test_the_base_is_not_the_bank_s_to_load(tmp_path):
    model, file = adapted(), str(tmp_path / "bank.weights.h5")
    bank = bank_of(model)
    bank.model.save_weights(file)
    weights = bank.model.get_weights()
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=3, verbose=0)
    trained = model.predict(X, verbose=0)
    answers = bank.predict(X, ["alice", "bob"] * 2)
    bank.model.set_weights(weights)
    np.testing.assert_array_equal(model.predict(X, verbose=0), trained)
    bank.model.load_weights(file)
    np.testing.assert_array_equal(model.predict(X, verbose=0), trained)
    np.testing.assert_allclose(
        bank.predict(X, ["alice", "bob"] * 2), answers, atol=1e-6
    )
    # Row 0 of another bank is of the model that it was made of.
    other = bank_of(model)
    base = other.predict(X, [None] * 4)
    other.model.load_weights(file)
    np.testing.assert_array_equal(other.predict(X, [None] * 4), base)
    np.testing.assert_allclose(
        other.predict(X, ["alice", "bob"] * 2), answers, atol=1e-6
    )
    base = bank.model.base.get_layer("a").base_kernel
    base.assign(base + 1.0)
    with pytest.raises(ValueError, match="another base"):
        bank.model.load_weights(file)


def test_trainable_is_not_the_bank_s_to_set():
    model = adapted()
    bank = bank_of(model)
    before = [v.trainable for v in model.variables]
    assert bank.model.trainable
    with pytest.raises(ValueError, match="can't be set"):
        bank.model.trainable = False
    assert [v.trainable for v in model.variables] == before


def parts_of(whole):
    return [
        {key: value[k : k + 4] for key, value in whole.items()}
        for k in (0, 4, 8)
    ]


def test_data_that_are_read_once_lose_no_batch():
    bank = bank_of(adapted())
    x = RNG.normal(size=(12, 16)).astype("float32")
    names = ["alice", "bob", None] * 4
    wanted = bank.predict(x, names)
    whole = batch(bank, names, x)
    parts = parts_of(whole)
    found = bank.model.predict(((part,) for part in parts), verbose=0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    if BACKEND == "torch":
        import torch

        class Stream(torch.utils.data.IterableDataset):
            def __init__(self):
                rows = zip(*whole.values(), strict=True)
                self.rows = (dict(zip(whole, row, strict=True)) for row in rows)

            def __iter__(self):
                return self.rows

        loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
        found = bank.model.predict(loader, verbose=0)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        rows = iter(parts)
        data = tf.data.Dataset.from_generator(
            lambda: rows,
            output_signature={
                "inputs": tf.TensorSpec((4, 16)),
                "adapter_id": tf.TensorSpec((4,), "int32"),
            },
        )
        found = bank.model.predict(data, verbose=0)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def recomputed(x, inner):
    if BACKEND == "torch":
        from torch.utils import checkpoint

        return checkpoint.checkpoint(inner, x, use_reentrant=True)
    return keras.remat(lambda x: inner(x))(x)


def test_layers_that_are_called_again_train_or_are_refused():
    block = banks.Around(recomputed, name="block")
    bank = bank_of(adapted(block, ("a", "inner")))
    bank.model.compile("sgd", "mse")
    before = banks.row(bank, "alice")
    data = batch(bank, ["alice", "bob"] * 2)
    if BACKEND != "jax":
        with pytest.raises(ValueError, match="called again in the backward"):
            bank.model.fit(data, Y, verbose=0)
        return
    bank.model.fit(data, Y, verbose=0)
    after = banks.row(bank, "alice")
    key = next(k for k in before if "inner" in k and k.endswith("_u"))
    assert np.abs(after[key] - before[key]).max() > 1e-5


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is about a user's graph")
@pytest.mark.parametrize("end", ["close", "merge", "remove"])
def test_a_graph_of_a_bank_that_ended_answers_nobody(end):
    import tensorflow as tf

    model = adapted()
    bank = bank_of(model)
    ids = tf.constant(bank.ids(["alice", "bob", None, "alice"]))
    run = tf.function(lambda x, i: bank.model({"inputs": x, "adapter_id": i}))
    assert np.isfinite(run(X, ids).numpy()).all()
    if end == "close":
        bank.close()
    else:
        getattr(keras_ether, end)(model)
    assert np.isnan(run(X, ids).numpy()[[0, 1, 3]]).all()


@pytest.mark.parametrize("end", [keras_ether.merge, keras_ether.remove])
def test_a_bank_says_that_its_adapters_are_gone(end, tmp_path):
    """And is not told so by other models' verbs."""
    model, other = adapted(), adapted()
    bank = bank_of(model)
    bank.model.compile("sgd", "mse")
    trained = bank.model.trainable_variables
    file = tmp_path / "bank.weights.h5"
    bank.model.save_weights(file)
    wanted = bank.predict(X, ["alice", "bob"] * 2)
    end(other)
    np.testing.assert_array_equal(bank.predict(X, ["alice", "bob"] * 2), wanted)
    ids = bank.ids(["alice"] * 4)
    end(model)
    for use in (
        lambda: bank.predict(X, ["alice"] * 4),
        lambda: bank.model(banks.with_ids(X, ids)),
        lambda: bank.model.fit(banks.with_ids(X, ids), Y, verbose=0),
        lambda: bank.model.train_on_batch(banks.with_ids(X, ids), Y),
        lambda: bank.save("alice", tmp_path / "alice.safetensors"),
        lambda: bank.model.load_weights(file),
    ):
        with pytest.raises(ValueError, match="was merged or removed since"):
            use()
    assert bank.model.trainable_variables == trained


@pytest.mark.parametrize("around", [False, True])
def test_the_verbs_refuse_the_bank_s_model(around, tmp_path):
    """They would act on the base's own adapters."""
    bank = bank_of(adapted())
    x = batch(bank, ["alice", "bob"] * 2)
    wanted = bank.model.predict(x, verbose=0)
    whole = banks.outer(bank) if around else bank.model
    whole.compile("sgd", "mse")
    file = str(tmp_path / "alice.safetensors")
    bank.save("alice", file)
    checkpoint = keras_ether.callbacks.AdapterCheckpoint(
        str(tmp_path / "latest.safetensors")
    )
    logger = keras_ether.diagnostics.DistanceLogger()
    for verb in (
        keras_ether.apply,
        keras_ether.merge,
        keras_ether.remove,
        keras_ether.plan,
        keras_ether.summary,
        keras_ether.lora_factors,
        keras_ether.diagnostics.diagnose,
        lambda model: keras_ether.strength(model, 0.5),
        lambda model: keras_ether.disabled(model).__enter__(),
        lambda model: keras_ether.save_adapter(model, file),
        lambda model: keras_ether.load_adapter(model, file),
        lambda model: bank.add("carol", model),
        lambda model: model.fit(x, Y, verbose=0, callbacks=[checkpoint]),
        lambda model: model.fit(x, Y, verbose=0, callbacks=[logger]),
    ):
        with pytest.raises(ValueError, match="is the model of an `AdapterBank"):
            verb(whole)
    np.testing.assert_array_equal(bank.model.predict(x, verbose=0), wanted)
    assert len(list(tmp_path.iterdir())) == 1


def test_data_that_shuffle_before_an_epoch_are_read_after():
    bank = bank_of(adapted())
    bank.model.compile("sgd", "mse")
    x = RNG.normal(size=(12, 16)).astype("float32")
    whole = batch(bank, ["alice", "bob", None] * 4, x)
    begun = []

    class Shuffled(banks.Batches):
        def on_epoch_begin(self):
            begun.append([])

        def __getitem__(self, index):
            if begun:
                begun[-1].append(index)
            return super().__getitem__(index)

    data = Shuffled((part, Y) for part in parts_of(whole))
    bank.model.fit(data, epochs=2, verbose=0, shuffle=False)
    # Keras itself may look at the first batch, too.
    assert [sorted(one) for one in begun[-2:]] == [[0, 1, 2]] * 2


def test_a_merge_that_fails_leaves_a_bank_as_it_was(monkeypatch):
    model = adapted()
    bank = bank_of(model)
    wanted = bank.predict(X, ["alice", "bob"] * 2)

    def fail(*args):
        raise MemoryError

    monkeypatch.setattr("keras_ether.surgery.optimizer_slots.drop", fail)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    with pytest.raises(MemoryError):
        keras_ether.merge(model)
    np.testing.assert_array_equal(bank.predict(X, ["alice", "bob"] * 2), wanted)
