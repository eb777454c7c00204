import os

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.callbacks import AdapterCheckpoint
from keras_ether.callbacks import resume
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import models

pytestmark = checks.WITHOUT_ADVICE
BATCH = 4
STEPS = 3


def base(seed=0):
    """A base with dropout and batch normalization; only its kernels are set."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(8, activation="tanh", name="first"),
            keras.layers.Dropout(0.3),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(4, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape) * 0.3)
    return model


def adapted(method="ether", seed=0):
    return keras_ether.apply(
        base(seed),
        method=method,
        rank_blocks=2,
        trainable=["norm", "head"],
        dropout=0.2,
        seed=seed,
    )


def adam(rate=0.05):
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.8)
    return keras.optimizers.Adam(schedule, amsgrad=True)


OPTIMIZERS = {
    "adam": adam,
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01), dynamic_growth_steps=2
    ),
    # The head at a rate of its own.
    "by layer": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(), {".*head/.*": adam(0.2)})
    ),
}


def compile_model(model, optimizer="adam", run_eagerly=models.EAGERLY):
    model.compile(
        OPTIMIZERS[optimizer](),
        "mse",
        metrics=["mae"],
        run_eagerly=run_eagerly,
    )
    return model


@pytest.fixture
def data(rng):
    x = rng.standard_normal((BATCH * STEPS, 16)).astype("float32")
    return x, (x[:, :4] * 2).astype("float32")


class Losses(keras.callbacks.Callback):
    """Remembers the loss after each batch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def fit(model, data, epochs, initial_epoch=0, callbacks=(), **kwargs):
    losses = Losses()
    model.fit(
        *data,
        batch_size=BATCH,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[losses, *callbacks],
        **kwargs,
    )
    return losses.values


@pytest.fixture
def saved(data, tmp_path):
    """A checkpoint after one epoch, and the model."""
    path = tmp_path / "latest.safetensors"
    model = compile_model(adapted())
    fit(model, data, 1, callbacks=[AdapterCheckpoint(path)])
    return path, model


@pytest.mark.by_turns
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_run_is_one_that_never_stopped(optimizer, data, tmp_path):
    path = tmp_path / "latest.safetensors"
    whole = compile_model(adapted(), optimizer)
    expected = fit(whole, data, 4)
    first = compile_model(adapted(), optimizer)
    begun = fit(first, data, 2, callbacks=[AdapterCheckpoint(path)])
    # Another process: nothing is left of the run but the file.
    model = compile_model(base(seed=7), optimizer)
    position = resume(model, path)
    assert (position.epoch, position.batch) == (2, 0)
    assert position.step == 2 * STEPS
    resumed = fit(
        model,
        data,
        4,
        initial_epoch=position.epoch,
        callbacks=[AdapterCheckpoint(path)],
    )
    assert begun + resumed == expected
    checks.equal(model.weights, whole.weights)


def test_resume_into_an_adapted_model_that_trains(data, tmp_path):
    path = tmp_path / "latest.safetensors"
    model = compile_model(adapted("ether+"), run_eagerly=False)
    fit(model, data, 1, callbacks=[AdapterCheckpoint(path)])
    expected = fit(model, data, 3, initial_epoch=1)
    position = resume(model, path)
    assert fit(model, data, 3, initial_epoch=position.epoch) == expected


def test_resume_within_an_epoch(data, tmp_path):
    path = tmp_path / "{epoch}-{batch}.safetensors"
    whole = compile_model(adapted())
    x, y = data
    fit(whole, data, 1, callbacks=[AdapterCheckpoint(path, save_freq=2)])
    assert os.listdir(tmp_path) == ["1-2.safetensors"]
    model = compile_model(base(seed=7))
    position = resume(model, tmp_path / "1-2.safetensors")
    assert (position.epoch, position.batch, position.step) == (0, 2, 2)
    model.train_on_batch(x[2 * BATCH :], y[2 * BATCH :])
    checks.equal(model.trainable_variables, whole.trainable_variables)


def test_last_batch_of_an_epoch_is_the_start_of_the_next(data, tmp_path):
    path = tmp_path / "latest.safetensors"
    model = compile_model(adapted())
    fit(model, data, 1, callbacks=[AdapterCheckpoint(path, save_freq=STEPS)])
    position = resume(model, path)
    assert (position.epoch, position.batch) == (1, 0)


def test_best_only_and_names_by_logged_values(data, tmp_path, capsys):
    model = compile_model(adapted())
    path = tmp_path / "kept" / "{epoch:02d}-{val_loss:.3f}.safetensors"
    checkpoint = AdapterCheckpoint(
        path, save_best_only=True, verbose=1, mode="min"
    )
    history = keras.callbacks.History()
    fit(
        model,
        data,
        4,
        callbacks=[checkpoint, history],
        validation_data=data,
    )
    losses = history.history["val_loss"]
    expected = [
        f"{epoch + 1:02d}-{loss:.3f}.safetensors"
        for epoch, loss in enumerate(losses)
        if loss < min([np.inf, *losses[:epoch]])
    ]
    assert sorted(os.listdir(tmp_path / "kept")) == expected
    assert "improved from None" in capsys.readouterr().out
    last = tmp_path / "kept" / expected[-1]
    position = resume(model, last)
    assert position.best == min(losses)
    threshold = AdapterCheckpoint(
        tmp_path / "none.safetensors",
        save_best_only=True,
        initial_value_threshold=position.best - 100,
    )
    fit(model, data, 1, callbacks=[threshold], validation_data=data)
    assert not os.path.exists(tmp_path / "none.safetensors")


def test_checkpoint_is_an_adapter_file(saved, data):
    path, model = saved
    other = keras_ether.load_adapter(base(seed=7), path)
    np.testing.assert_array_equal(
        models.call(other, data[0]), models.call(model, data[0])
    )
    assert keras_ether.read_adapter_header(path)["training"]["epoch"] == 1


def test_folder_is_made_as_keras_does(data, tmp_path):
    path = tmp_path / "new" / "{epoch}" / "m.safetensors"
    model = adapted()
    model.compile("sgd", "mse")
    model.fit(*data, verbose=0, callbacks=[AdapterCheckpoint(path)])
    assert os.listdir(tmp_path / "new" / "1") == ["m.safetensors"]
    (tmp_path / "dir.safetensors").mkdir()
    saver = AdapterCheckpoint(tmp_path / "dir.safetensors")
    with pytest.raises(OSError, match=r"directory: .*dir\.safetensors"):
        model.fit(*data, verbose=0, callbacks=[saver])


def test_what_is_not_finite_does_not_replace_a_file(saved, data, tmp_path):
    path, model = saved
    before = path.read_bytes()
    head = model.get_layer("head").bias
    head.assign(np.full(head.shape, np.nan))
    with pytest.warns(UserWarning, match=r"No checkpoint.*not finite"):
        fit(model, data, 1, callbacks=[AdapterCheckpoint(path)])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["latest.safetensors"]


def test_model_without_an_adapter_is_an_error_before_training(data, tmp_path):
    model = compile_model(base())
    before = models.values(model.weights)
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        fit(
            model,
            data,
            1,
            callbacks=[AdapterCheckpoint(tmp_path / "a.safetensors")],
        )
    checks.equal(model.weights, before)


@pytest.mark.parametrize(
    ("is_adapted", "trained"), [(False, False), (False, True), (True, True)]
)
def test_state_of_another_optimizer_leaves_the_model(
    is_adapted, trained, saved, data
):
    path, _ = saved
    # As many variables, of another class; and of the same class, but fewer.
    for optimizer, message in (
        (keras.optimizers.SGD(0.1, momentum=0.9), "is SGD, the file's Adam"),
        (keras.optimizers.Adam(0.1), "count of the optimizer's variables"),
    ):
        other = adapted() if is_adapted else base()
        other.compile(optimizer, "mse", run_eagerly=True)
        if trained:
            other.train_on_batch(*data)
            set_base(other)
        before = checks.state(other)
        with pytest.raises(ValueError, match=message):
            resume(other, path)
        checks.unchanged(other, before)
        other.train_on_batch(*data)
        set_base(other)
        resume(compile_model(other), path)


def set_base(model):
    """Undoes what training has done to a model without adapters."""
    if not LayerTree(model).adapted:
        model.set_weights(base().get_weights())


def test_file_without_a_state_of_training(data, tmp_path):
    path = tmp_path / "a.safetensors"
    model = compile_model(adapted())
    keras_ether.save_adapter(model, path)
    with pytest.raises(ValueError, match="holds no training state"):
        resume(model, path)


def test_model_that_is_not_compiled(saved):
    path, _ = saved
    model = base()
    with pytest.raises(ValueError, match="is not compiled"):
        resume(model, path)
    assert not LayerTree(model).adapted
