"""The life of an adapter, on a layer of every kind."""

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.adapters import kinds as table
from tests import checks
from tests import kinds
from tests import models
from tests import tuned

ARGUMENTS = {"targets": "all", "trainable": ["head"], "rank_blocks": 2}


def test_every_kind_of_the_table_has_a_life():
    lived = {table.kind_of(kinds.layer_of(kind)) for kind in kinds.LAYERS}
    assert lived == set(table.KINDS)


def train(model, x):
    model.compile(keras.optimizers.Adam(0.05), "mse")
    models.build_optimizer(model)
    model.train_on_batch(x, np.ones((len(x), 2), "float32"))


@pytest.mark.by_turns
@pytest.mark.parametrize("kind", kinds.LAYERS)
def test_life(kind, rng, tmp_path):
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    layer = model.get_layer("target")
    layer_class = type(layer)
    base = models.call(model, x)
    weights = models.values(model.weights)
    flags = [v.trainable for v in model.variables]

    planned = keras_ether.plan(
        model, method="ether+", print_fn=str, **ARGUMENTS
    )
    keras_ether.apply(model, method="ether+", seed=0, **ARGUMENTS)
    found = keras_ether.summary(model, print_fn=str)
    assert [row.path for row in found.rows] == ["target"]
    assert found.rows == planned.rows
    assert layer.plain_class is layer_class
    np.testing.assert_array_equal(models.call(model, x), base)

    vectors = layer.ether.vectors.values()
    head = model.get_layer("head").variables
    before = models.values(model.weights)
    train(model, x)
    for variable, value in zip(model.weights, before, strict=True):
        trains = any(variable is v for v in [*vectors, *head])
        moved = not np.array_equal(*models.values([variable]), value)
        assert moved == trains, variable.path
    active = models.call(model, x)
    with keras_ether.disabled(model):
        assert np.abs(models.call(model, x) - active).max() > 1e-3

    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    plain = kinds.model_of(kind)
    plain.load_weights(path)
    np.testing.assert_allclose(models.call(plain, x), active, atol=1e-5)
    saved = models.values(model.weights)
    kinds.randomize(layer, rng)
    model.load_weights(path)
    checks.equal(model.weights, saved)

    keras_ether.merge(model)
    assert type(layer) is layer_class
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)

    for variable, value in zip(model.weights, weights, strict=True):
        variable.assign(value)
    keras_ether.apply(model, method="ether", seed=0, **ARGUMENTS)
    assert np.abs(models.call(model, x) - base).max() > 1e-3
    keras_ether.remove(model)
    np.testing.assert_array_equal(models.call(model, x), base)
    assert [v.trainable for v in model.variables] == flags


@pytest.mark.parametrize("kind", kinds.LAYERS)
def test_files_over_another_base_keep_the_predictions(kind, rng, tmp_path):
    x = kinds.inputs_of(kind, rng)
    path = tmp_path / "model.weights.h5"
    one, other = kinds.model_of(kind), kinds.model_of(kind)
    for seed, model in enumerate((one, other)):
        keras_ether.apply(model, method="ether", seed=seed, **ARGUMENTS)
    one.save_weights(path)
    other.load_weights(path)
    checks.equal(tuned.vectors_of(other), models.values(tuned.vectors_of(one)))
    expected = models.call(one, x)
    np.testing.assert_allclose(models.call(other, x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", kinds.LAYERS)
def test_keras_file_loads_as_the_plain_model(kind, rng, tmp_path):
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    layer_class = type(model.get_layer("target"))
    keras_ether.apply(model, seed=0, **ARGUMENTS)
    model.save(tmp_path / "model.keras")
    plain = keras.models.load_model(tmp_path / "model.keras")
    assert type(plain.get_layer("target")) is layer_class
    expected = models.call(model, x)
    np.testing.assert_allclose(models.call(plain, x), expected, atol=1e-5)
