"""Keras's files of compiled adapted models, with the optimizer's state."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_ether
from tests import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((16, 8)).astype("float32")
Y = RNG.standard_normal((16, 2)).astype("float32")


def two_a_kernel():
    """As many trained variables as the plain model has."""
    return {"method": "ether", "strength": "learned"}


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
    keras_ether.apply(model, rank_blocks=1, seed=0, **ADAPTERS[adapters])
    model.compile(OPTIMIZERS[optimizer](), "mse", run_eagerly=True)
    return model


def fit(model, epochs=1):
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


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
    for now, then in zip(
        models.values(model.optimizer.variables), before, strict=True
    ):
        np.testing.assert_array_equal(now, then)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    fit(model), fit(other)
    for mine, theirs in zip(
        models.values([*model.variables, *model.optimizer.variables]),
        models.values([*other.variables, *other.optimizer.variables]),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_checkpoints_of_keras(tmp_path):
    def run(epochs, model, callbacks):
        model.fit(
            *(X, Y),
            batch_size=8,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, model = (model_of("learned", "adam") for _ in range(2))
    run(4, whole, [])
    path = tmp_path / "backup"
    with pytest.raises(KeyboardInterrupt):
        run(
            4,
            model,
            [
                keras.callbacks.BackupAndRestore(path),
                Stop(),
                keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"),
            ],
        )
    keras.models.load_model(tmp_path / "m.keras", compile=False)
    again = model_of("learned", "adam")
    run(4, again, [keras.callbacks.BackupAndRestore(path)])
    for mine, theirs in zip(
        models.values(again.variables),
        models.values(whole.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


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
    for mine, theirs in zip(
        models.values(loaded.optimizer.variables),
        models.values(optimizer.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


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
    for now, then in zip(
        models.values(optimizer.variables), before, strict=True
    ):
        np.testing.assert_array_equal(now, then)


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
