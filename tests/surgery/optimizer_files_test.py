"""Keras's files of compiled adapted models, with the optimizer's state."""

import gc
import subprocess
import sys
import weakref

import h5py
import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.adapters import weights_file
from tests import checks
from tests import models

pytestmark = checks.WITHOUT_ADVICE
RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 8)).astype("float32")
Y = RNG.standard_normal((16, 2)).astype("float32")


ADAPTERS = {
    "learned": {"method": "ether", "strength": "learned"},
    "one side": {"method": "ether+", "side": "input"},
    "one vector": {"method": "ether"},
    "both sides": {"method": "ether+"},
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "momentum": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(1e-2, 100), momentum=0.9
    ),
    "no slots": lambda: keras.optimizers.SGD(1e-2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-2)
    ),
}


def model_of(adapters, optimizer, trainable=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(2),
        ]
    )
    model.trainable = trainable
    keras_ether.apply(
        model, rank_blocks=1, seed=0, dropout=0.2, **ADAPTERS[adapters]
    )
    model.compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=True)
    return model


def fit(model, epochs=1, callbacks=()):
    model.fit(
        *(X, Y),
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


CASES = [
    ("learned", "adam"),
    ("one side", "adam"),
    ("learned", "momentum"),
    ("one side", "no slots"),
    ("learned", "loss scale"),
    ("one vector", "adam"),
    ("both sides", "momentum"),
]


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(("adapters", "optimizer"), CASES)
def test_a_plain_reader_has_the_predictions(
    adapters, optimizer, trainable, tmp_path
):
    model = model_of(adapters, optimizer, trainable)
    fit(model, 2)
    expected = models.call(model, X)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(models.call(loaded, X), expected, atol=1e-5)
    model.save_weights(tmp_path / "m.weights.h5")
    plain = keras.models.clone_model(loaded)
    plain.compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=True)
    if trainable:
        fit(plain)
    plain.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(models.call(plain, X), expected, atol=1e-5)


@pytest.mark.parametrize(("adapters", "optimizer"), CASES)
def test_an_adapted_reader_goes_on(adapters, optimizer, tmp_path):
    model, other = (model_of(adapters, optimizer) for _ in range(2))
    fit(model, 2)
    before = models.values(model.optimizer.variables)
    model.save_weights(tmp_path / "m.weights.h5")
    checks.equal(model.optimizer.variables, before)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    fit(model), fit(other)
    checks.equal(
        [*model.variables, *model.optimizer.variables],
        [*other.variables, *other.optimizer.variables],
    )


def test_checkpoints_of_keras(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, model = (model_of("learned", "adam") for _ in range(2))
    fit(whole, 4)
    path = tmp_path / "backup"
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras")
    callbacks = [keras.callbacks.BackupAndRestore(path), Stop(), checkpoint]
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, callbacks)
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    np.testing.assert_allclose(
        models.call(loaded, X), models.call(model, X), atol=1e-5
    )
    again = model_of("learned", "adam")
    fit(again, 4, [keras.callbacks.BackupAndRestore(path)])
    checks.equal(again.variables, whole.variables)


@pytest.mark.parametrize("end", [keras_ether.merge, keras_ether.remove])
def test_afterwards_the_optimizer_is_kerass_own(end, tmp_path):
    model = model_of("learned", "adam")
    fit(model)
    model.save(tmp_path / "m.keras")
    optimizer = model.optimizer
    end(model)
    for owner in (optimizer, model):
        assert not {"save_own_variables", "load_own_variables"} & {*vars(owner)}
    fit(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    checks.equal(loaded.optimizer.variables, optimizer.variables)
    fit(model), fit(loaded)
    checks.equal(loaded.weights, model.weights)


def test_an_optimizer_that_goes_to_another_model_saves_itself(tmp_path):
    model = model_of("learned", "adam")
    fit(model)
    model.save(tmp_path / "m.keras")
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    optimizer = model.optimizer
    model.compile("adam", "mse")
    plain.compile(optimizer, "mse", run_eagerly=True)
    plain.save_weights(tmp_path / "p.weights.h5")
    before = models.values(optimizer.variables)
    for variable in optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    plain.load_weights(tmp_path / "p.weights.h5")
    checks.equal(optimizer.variables, before)


def two_steps_after(interrupt, tmp_path):
    """A reader of what a model saves after an interrupted file and a fit."""
    model, reader = (model_of("one vector", "adam") for _ in range(2))
    fit(model, 5)
    interrupt(model, tmp_path)
    model.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
    fit(model)
    model.save_weights(tmp_path / "m.weights.h5")
    reader.optimizer.build(reader.trainable_variables)
    reader.load_weights(tmp_path / "m.weights.h5")
    checks.equal(reader.optimizer.variables, model.optimizer.variables)


def load_of_another_method(model, tmp_path):
    other = model_of("both sides", "adam")
    other.save_weights(tmp_path / "o.weights.h5")
    with pytest.raises(ValueError, match="don't fit this model"):
        model.load_weights(tmp_path / "o.weights.h5")


@pytest.mark.parametrize("verb", ["save", "load"])
@pytest.mark.parametrize("at", ["layer", "adapter"])
def test_a_file_that_was_interrupted(at, verb, tmp_path):
    owner, name = {
        "layer": (keras.layers.Dense, f"{verb}_own_variables"),
        "adapter": (weights_file, f"{verb}_vectors"),
    }[at]

    def raising(*_):
        raise KeyboardInterrupt

    def interrupt(model, tmp_path):
        path = tmp_path / "i.weights.h5"
        model.save_weights(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, raising)
            with pytest.raises(KeyboardInterrupt):
                getattr(model, f"{verb}_weights")(path)

    two_steps_after(interrupt, tmp_path)


def test_a_file_that_does_not_fit(tmp_path):
    two_steps_after(load_of_another_method, tmp_path)


def test_an_optimizer_that_an_interrupted_file_left(monkeypatch, tmp_path):
    model = model_of("one vector", "adam")
    fit(model)
    monkeypatch.setattr(weights_file, "save_vectors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save_weights(tmp_path / "m.weights.h5")
    optimizer = model.optimizer
    model.compile("adam", "mse")
    store = {}
    optimizer.save_own_variables(store)
    assert len(store) == len(optimizer.variables)


def nested():
    inner = model_of("one vector", "adam")
    outer = keras.Sequential([keras.Input((8,)), inner])
    keras_ether.remove(inner)
    keras_ether.apply(outer, method="ether", rank_blocks=1, seed=0)
    for model in (outer, inner):
        model.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
    return outer, inner


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("built", [(0,), (1,), (0, 1)])
def test_each_of_two_nested_models_has_its_own_optimizer(built, tmp_path):
    saved, read = nested(), nested()
    fit(saved[0], 2), fit(saved[1], 1)
    saved[0].save_weights(tmp_path / "m.weights.h5")
    for i in built:
        read[i].optimizer.build(read[i].trainable_variables)
    read[0].load_weights(tmp_path / "m.weights.h5")
    for i in built:
        expected = models.values(saved[i].optimizer.variables)
        checks.equal(read[i].optimizer.variables, expected)


def older(path):
    """Gives a file's entries of optimizers the names of older versions."""
    with h5py.File(path, "a") as file:
        found = []
        file.visit(found.append)
        for entry in found:
            group, _, name = entry.rpartition("/")
            if name.startswith("optimizer_depth"):
                depth, _, i = name.removeprefix("optimizer_depth").split("_")
                file.move(entry, f"{group}/optimizer_{1 - int(depth)}_{i}")


def test_older_files_count_the_models(tmp_path):
    saved, read = nested(), nested()
    fit(saved[0], 2), fit(saved[1], 1)
    saved[0].save_weights(tmp_path / "m.weights.h5")
    older(tmp_path / "m.weights.h5")
    for model in read:
        model.optimizer.build(model.trainable_variables)
    read[0].load_weights(tmp_path / "m.weights.h5")
    for one, other in zip(read, saved, strict=True):
        checks.equal(one.optimizer.variables, other.optimizer.variables)


def test_models_that_share_their_first_adapter(tmp_path):
    def made():
        shared = model_of("one vector", "adam")
        parts = [
            keras.Sequential([keras.Input((8,)), shared]) for _ in range(2)
        ]
        inputs = keras.Input((8,))
        whole = keras.Model(inputs, [part(inputs) for part in parts])
        keras_ether.remove(shared)
        keras_ether.apply(whole, method="ether", rank_blocks=1, seed=0)
        for part in parts:
            part.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
        return whole, parts

    (whole, parts), (other, read) = made(), made()
    for epochs, part in enumerate(parts, 1):
        fit(part, epochs)
    whole.save_weights(tmp_path / "m.weights.h5")
    for part in read:
        part.optimizer.build(part.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    for one, saved in zip(read, parts, strict=True):
        checks.equal(one.optimizer.variables, saved.optimizer.variables)


class TwoOptimizers(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        self.second = keras.optimizers.Adam(1e-2)

    def call(self, x):
        return self.dense(x)


def test_every_optimizer_of_a_model_is_saved(tmp_path):
    def made():
        model = TwoOptimizers()
        model(X)
        keras_ether.apply(model, method="ether", seed=0)
        model.compile(keras.optimizers.Adam(1e-2), "mse", run_eagerly=True)
        for optimizer in (model.optimizer, model.second):
            optimizer.build(model.trainable_variables)
        return model

    model, other = made(), made()
    for i, optimizer in enumerate((model.optimizer, model.second)):
        for variable in optimizer.variables:
            variable.assign(np.full(variable.shape, i + 1))
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    checks.equal(other.optimizer.variables, model.optimizer.variables)
    checks.equal(other.second.variables, model.second.variables)


def test_a_saved_optimizer_is_gone_from_memory(tmp_path):
    model = model_of("one vector", "adam")
    known = []
    for _ in range(3):
        model.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
        fit(model)
        model.save_weights(tmp_path / "m.weights.h5")
        known.append(weakref.ref(model.optimizer))
    load_of_another_method(model, tmp_path)
    model.compile(OPTIMIZERS["adam"](), "mse", run_eagerly=True)
    gc.collect()
    assert [one() for one in known] == [None, None, None]


READER = """
import sys, warnings
import keras
warnings.simplefilter("ignore")
model = keras.models.load_model(sys.argv[1])
assert "keras_ether" not in sys.modules
model.fit(*[keras.ops.ones((4, n)) for n in (8, 2)], verbose=0)
"""


@pytest.mark.nightly
def test_in_a_process_without_the_package(tmp_path):
    model = model_of("learned", "adam")
    fit(model)
    model.save(tmp_path / "m.keras")
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "m.keras")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
