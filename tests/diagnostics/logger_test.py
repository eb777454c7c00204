import sys

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.diagnostics import DistanceLogger
from tests import models

DATA = models.inputs_of("mlp", np.random.default_rng(0)), np.ones((8, 4))


def fit(model, *callbacks):
    """Two steps in each epoch."""
    model.compile(
        keras.optimizers.Adam(0.01), "mse", run_eagerly=models.EAGERLY
    )
    # In one order, so that two runs can be compared.
    return model.fit(
        *DATA,
        batch_size=4,
        shuffle=False,
        epochs=2,
        verbose=0,
        callbacks=list(callbacks),
    )


@pytest.fixture
def model():
    return keras_ether.apply(
        models.mlp(), method="ether+", targets="all-linear", trainable="head"
    )


def test_history_follows_the_vectors(model):
    logger = DistanceLogger()
    history = fit(model, logger).history
    places = [(entry["epoch"], entry["step"]) for entry in logger.history]
    assert places == [(0, 0), (1, 2), (2, 4)]
    start, middle, end = logger.history
    unmoved = {"first": 0.0, "second": 0.0}
    assert start["distance"] == start["kernel_distance"] == unmoved
    found = keras_ether.diagnostics.diagnose(model, print_fn=str)
    for row in found.rows:
        assert 0 < middle["distance"][row.path] < end["distance"][row.path]
        assert end["distance"][row.path] == row.distance
        assert end["kernel_distance"][row.path] == row.kernel_distance
    # Another `fit` starts another history.
    model.fit(*DATA, batch_size=8, verbose=0, callbacks=[logger])
    assert [entry["step"] for entry in logger.history] == [0, 1]
    assert logger.history[0]["distance"] == end["distance"]
    for name in ("distance", "kernel_distance"):
        means = [np.mean(list(e[name].values())) for e in (middle, end)]
        np.testing.assert_allclose(history[f"ether_{name}"], means)


def test_training_goes_on_as_it_would(model):
    start = models.values(model.weights)
    plain = fit(model).history["loss"]
    for variable, value in zip(model.weights, start, strict=True):
        variable.assign(value)
    logger = DistanceLogger(every=1)
    logged = fit(model, logger).history["loss"]
    np.testing.assert_allclose(logged, plain, rtol=1e-6)


def test_every_so_many_steps(model):
    logger = DistanceLogger(every=1)
    fit(model, logger)
    places = [(entry["epoch"], entry["step"]) for entry in logger.history]
    assert places == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4)]
    moves = [entry["distance"]["first"] for entry in logger.history]
    assert moves == sorted(set(moves))


def test_tensorboard_reads_the_distances(model, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    logger = DistanceLogger(log_dir=tmp_path / "logs")
    fit(model, logger)
    events = reader.EventAccumulator(
        str(tmp_path / "logs"), size_guidance={reader.TENSORS: 0}
    ).Reload()
    tag = "ether_distance/second"
    assert tag in events.Tags()["tensors"]
    found = events.Tensors(tag)
    assert [event.step for event in found] == [0, 2, 4]
    np.testing.assert_allclose(
        [event.tensor_proto.float_val[0] for event in found],
        [entry["distance"]["second"] for entry in logger.history],
        rtol=1e-6,
    )


def test_missing_tensorboard_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        DistanceLogger(log_dir=tmp_path)


@pytest.mark.parametrize("every", [0, -1])
def test_wrong_every_is_refused(every):
    with pytest.raises(ValueError, match=f"every={every!r}"):
        DistanceLogger(every=every)


def test_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="has no ETHER adapter"):
        fit(models.mlp(), DistanceLogger())
