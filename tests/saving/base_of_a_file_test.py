"""Over the base of which files of today, and of before, are accepted."""

import h5py
import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.ops.fingerprint import sampled_fingerprint
from keras_ether.saving import adapter_file
from keras_ether.saving import contents
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import models
from tests import tuned

ARGUMENTS = {
    "method": "ether",
    "targets": ["wide"],
    "trainable": ["head"],
    "seed": 0,
}
# What a header of each earlier version lacks, and a model that it could name.
EARLIER = [
    (1, ("strength", "rate_multiplier"), {}),
    (2, ("rate_multiplier",), {"method": "ether+", "strength": "learned"}),
]


def base():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((512,)),
            keras.layers.Dense(512, name="wide"),
            keras.layers.Dense(2, name="head"),
        ]
    )


def adapted(seed=0, **arguments):
    model = keras_ether.apply(base(), **ARGUMENTS | arguments)
    tuned.move(model.trainable_weights, seed)
    return model


def edited(model, count=7):
    """The model with a few entries changed, none of which was sampled."""
    layer = model.get_layer("wide")
    kernel = getattr(layer, "base_kernel", layer.kernel)
    (value,) = models.values([kernel])
    digest = sampled_fingerprint(value)
    places = iter(np.random.default_rng(0).permutation(value.size))
    while count:
        changed = value.copy()
        changed.flat[next(places)] += 1.0
        if np.array_equal(sampled_fingerprint(changed), digest):
            value, count = changed, count - 1
    kernel.assign(value)
    return model


def check_same(model, other):
    checks.equal(model.weights, other.weights)


def as_of_before(model, path, version, later):
    """The adapter file that the package wrote before it counted every entry."""
    content = adapter_file.read(path)
    tree = LayerTree(model)
    layers = tree.by_path
    of_layers, rest = contents.base_fingerprints(
        layers,
        tree.adapted,
        contents.other_trained_weights(layers),
        sampled_fingerprint,
    )
    header = content.header | {"format_version": version, "base": rest}
    header["adapters"] = [
        group | {"layers": {p: of_layers[p] for p in group["layers"]}}
        for group in header["adapters"]
    ]
    for group in header["adapters"]:
        for name in later:
            del group[name]
    adapter_file.write(path, AdapterFile(header, content.tensors))


def test_seven_edited_entries_are_another_base(tmp_path):
    path = tmp_path / "m.ether.safetensors"
    keras_ether.save_adapter(adapted(), path)
    with pytest.raises(ValueError, match="another base: the weights of 'wide'"):
        keras_ether.load_adapter(edited(base()), path)
    check_same(keras_ether.load_adapter(base(), path), adapted())


@pytest.mark.parametrize(("version", "later", "arguments"), EARLIER)
def test_adapter_file_of_before(version, later, arguments, tmp_path):
    path = tmp_path / "m.ether.safetensors"
    model = adapted(**arguments)
    keras_ether.save_adapter(model, path)
    as_of_before(model, path, version, later)
    header = keras_ether.read_adapter_header(path)
    assert header["format_version"] == version
    loaded = keras_ether.load_adapter(base(), path)
    check_same(loaded, model)
    assert loaded.get_layer("wide").ether.config.rate_multiplier == 1.0
    keras_ether.AdapterBank(loaded, 2).add("a", path)
    other = base()
    other.get_layer("wide").kernel.assign(np.ones((512, 512)))
    with pytest.raises(ValueError, match="another base: the weights of 'wide'"):
        keras_ether.load_adapter(other, path)
    loaded.get_layer("wide").base_kernel.assign(np.ones((512, 512)))
    with pytest.raises(ValueError, match="another base: the weights of layer"):
        keras_ether.AdapterBank(loaded, 2).add("a", path)


def test_weights_file_over_an_edited_base(rng, tmp_path):
    path = tmp_path / "m.weights.h5"
    model = adapted()
    model.save_weights(path)
    other = edited(adapted(seed=1))
    other.load_weights(path)
    x = rng.standard_normal((3, 512))
    np.testing.assert_allclose(
        models.call(other, x), models.call(model, x), atol=1e-4
    )


def test_weights_file_of_before(tmp_path):
    path = tmp_path / "m.weights.h5"
    adapted().save_weights(path)
    (kernel,) = models.values([adapted().get_layer("wide").base_kernel])
    with h5py.File(path, "r+") as file:
        (vectors,) = [
            group
            for group in _groups(file)
            if isinstance(group, h5py.Group) and "base_digest" in group
        ]
        del vectors["base_digest"]
        vectors["base_fingerprint"] = sampled_fingerprint(kernel)
    other = adapted(seed=1)
    other.load_weights(path)
    check_same(other, adapted())


def _groups(file):
    found = []
    file.visititems(lambda name, group: found.append(group))
    return found
