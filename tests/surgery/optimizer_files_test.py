"""Keras's files of compiled adapted models, with the optimizer's state."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_ether
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
