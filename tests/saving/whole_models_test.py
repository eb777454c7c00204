"""Every cell of the matrix of saving and loading, in one process."""

import contextlib
import functools
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.adapters import kinds
from tests import checks
from tests import models
from tests import tuned
from tests.saving import files
from tests.saving import matrix

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optim"),
    pytest.mark.filterwarnings("ignore:.compile.*was not called as part"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
NAMES = {
    "functional": "ether+",
    "mlp": "ether",
    "subclassed": "ether+",
    "bert": "ether",
}


@functools.cache
def fine_tuned(name, state):
    """A model with what it predicts, its base and its weights."""
    rng = np.random.default_rng(0)
    x = models.inputs_of(name, rng)
    model = tuned.adapted(name, NAMES[name])
    with keras_ether.disabled(model):
        base = models.call(model, x)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-2
    if state == "merged":
        keras_ether.merge(model)
    return SimpleNamespace(
        model=model, x=x, active=active, weights=models.values(model.weights)
    )


def ways(name):
    return [how for how in matrix.SAVED if how != "preset" or name == "bert"]


CELLS = [
    pytest.param(
        *(name, how, state, loaded),
        marks=pytest.mark.nightly
        if (state, loaded) == ("merged", "other base")
        else [],
    )
    for name in NAMES
    for how in ways(name)
    for state, loaded in matrix.CELLS
]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory):
    """Files by model, way and state, each saved once."""

    @functools.cache
    def save(name, how, state):
        folder = tmp_path_factory.mktemp("saved")
        return files.save(fine_tuned(name, state).model, how, folder)

    return save


@pytest.mark.by_turns
@pytest.mark.parametrize(("name", "how", "state", "loaded"), CELLS)
def test_cell(name, how, state, loaded, path_of):
    saved, path = fine_tuned(name, state), path_of(name, how, state)
    if loaded == "plain":
        make = functools.partial(tuned.base, name, seed=1)
        model = files.load_plain(how, path, make)
        assert not any(map(kinds.is_adapted, model._flatten_layers()))
        flags = [v.trainable for v in tuned.base(name).variables]
        assert [v.trainable for v in model.variables] == flags
    else:
        base_seed = 0 if loaded == "same base" else 1
        model = tuned.adapted(name, NAMES[name], seed=7, base_seed=base_seed)
        vectors = models.values(tuned.vectors_of(model))
        with expected_warning(name, state, loaded):
            files.load_into(model, how, path)
    outcome = matrix.CELLS[state, loaded]
    if outcome == matrix.RESUMED:
        checks.equal(models.values(model.weights), saved.weights)
        checks.equal([models.call(model, saved.x)], [saved.active])
    if outcome == matrix.BASE:
        checks.equal(models.values(tuned.vectors_of(model)), vectors)
        keras_ether.remove(model)
    np.testing.assert_allclose(
        models.call(model, saved.x), saved.active, atol=1e-4
    )


def expected_warning(name, state, loaded):
    if (state, loaded) == ("active", "other base") and NAMES[name] == "ether+":
        return pytest.warns(UserWarning, match="over another base")
    return contextlib.nullcontext()


@pytest.mark.parametrize("name", ["functional", "mlp"])
def test_keras_file_has_the_flags_from_before(name, tmp_path):
    model = tuned.base(name)
    model.layers[-2].trainable = False
    flags = {layer.name: layer.trainable for layer in model.layers}
    keras_ether.apply(model, seed=0, **tuned.ARGUMENTS)
    for entry in model.get_config()["layers"]:
        config = entry["config"]
        assert config.get("trainable", True) == flags.get(config["name"], True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    if name == "mlp":
        # Keras gives the layers of a functional model the model's own flag.
        assert {y.name: y.trainable for y in loaded.layers} == flags
    keras_ether.remove(model)
    assert {y.name: y.trainable for y in model.layers} == flags
    assert "get_config" not in vars(model.layers[0])


def test_legacy_file_is_no_plain_one(tmp_path):
    """Keras's old `.h5` knows a layer's list of variables and nothing more."""
    saved = fine_tuned("mlp", "active")
    saved.model.save(tmp_path / "model.h5")
    with pytest.raises(ValueError, match=r"expected|expects"):
        keras.saving.load_model(tmp_path / "model.h5")


def test_page_shows_the_matrix():
    page = Path(__file__).parents[2] / "examples" / "SAVING.md"
    assert matrix.as_markdown() in page.read_text(encoding="utf-8")
