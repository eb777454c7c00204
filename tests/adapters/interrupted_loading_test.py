"""Weights files whose reading fails or is interrupted half way."""

import h5py
import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery.verbs import adapted_layers
from tests import models
from tests import quantized_models as qm
from tests import tuned

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    pytest.mark.filterwarnings("ignore:The file"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
]


def base(seed, mode=None):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, name="first"),
            keras.layers.Dense(6, name="second"),
        ]
    )
    return qm.quantize(model, qm.INTEGERS[mode]()) if mode else model


def adapted(seed, base_seed, mode=None):
    model = keras_ether.apply(
        base(base_seed, mode),
        method="ether",
        rank_blocks=2,
        targets="all",
        dropout=0.1,
        seed=seed,
    )
    tuned.move(tuned.vectors_of(model), seed)
    for layer in adapted_layers(model).values():
        layer.bias.assign(layer.bias + 1.0 + seed)
    return model


def state(layer):
    return models.values(layer.variables)


class Interruption:
    """Lets the n-th array of a file, and all after it, raise an error."""

    def __init__(self, monkeypatch, n, error):
        self.left, read = n, h5py.Group.__getitem__

        def getitem(group, name):
            found = read(group, name)
            if isinstance(found, h5py.Dataset):
                self.left -= 1
                if self.left <= 0:
                    raise error
            return found

        monkeypatch.setattr(h5py.Group, "__getitem__", getitem)


def same(ones, others):
    return all(map(np.array_equal, ones, others))


@pytest.mark.parametrize("mode", [None, "int8"])
@pytest.mark.parametrize("base_seed", [0, 1])
@pytest.mark.parametrize("error", [ValueError("damaged"), KeyboardInterrupt()])
def test_layer_is_as_it_was_or_loaded(
    error, base_seed, mode, tmp_path, monkeypatch
):
    path = tmp_path / "m.weights.h5"
    adapted(1, 0, mode).save_weights(path)
    model = adapted(2, base_seed, mode)
    layers = adapted_layers(model)
    before = {name: state(layer) for name, layer in layers.items()}
    loaded = adapted(2, base_seed, mode)
    loaded.load_weights(path)
    after = {n: state(layer) for n, layer in adapted_layers(loaded).items()}
    unlike = 0
    for n in range(1, 100):
        with monkeypatch.context() as patch:
            interruption = Interruption(patch, n, error)
            try:
                model.load_weights(path)
            except (KeyboardInterrupt, ValueError):
                assert interruption.left <= 0
            else:
                assert interruption.left > 0
                break
        for name, layer in layers.items():
            found = state(layer)
            if not same(found, after[name]):
                assert same(found, before[name]), (n, name)
                unlike += 1
        for layer, values in zip(layers.values(), before.values(), strict=True):
            for variable, value in zip(layer.variables, values, strict=True):
                variable.assign(value)
    # Kernel, bias, vectors, method, fingerprint and dropout of two layers.
    assert n > 12
    assert unlike >= n


@pytest.mark.once
def test_layer_that_cannot_be_assigned_is_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "m.weights.h5"
    adapted(1, 0).save_weights(path)
    model = adapted(2, 1)
    layer = adapted_layers(model)["second"]
    before = state(layer)

    def fail(value):
        raise MemoryError

    monkeypatch.setattr(layer.ether, "unfold", fail)
    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(path)
    assert same(state(layer), before)


@pytest.mark.once
def test_vectors_are_not_loaded_onto_a_layer_that_was_skipped(tmp_path):
    path = tmp_path / "m.weights.h5"
    adapted(1, 0).save_weights(path)
    model = adapted(2, 1)
    layer = adapted_layers(model)["second"]
    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        (name,) = [n for n in names if n.endswith("dense_1/vars/1")]
        del file[name]
        file[name] = np.zeros((3,))
    before = state(layer)
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(path, skip_mismatch=True)
    assert same(state(layer), before)
