import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.layers import EtherConv1D
from keras_ether.layers import EtherConv2D
from keras_ether.layers import EtherConv3D
from keras_ether.layers import EtherDense
from keras_ether.layers import EtherEinsumDense
from keras_ether.layers import EtherEmbedding
from tests import checks
from tests import dense_oracle
from tests import models

LAYERS = {
    "dense": lambda **kwargs: EtherDense(
        6, activation="tanh", bias_initializer="ones", **kwargs
    ),
    "einsum": lambda **kwargs: EtherEinsumDense(
        "btd,dnh->btnh",
        (3, 2, 3),
        activation="tanh",
        bias_axes="nh",
        bias_initializer="ones",
        **kwargs,
    ),
}


def model_of(layer):
    return keras.Sequential([keras.Input((3, 4)), layer])


@pytest.mark.parametrize("side", [None, "input", "output", "both"])
@pytest.mark.parametrize("method", ["ether", "ether+", "oft", "naive"])
@pytest.mark.parametrize("kind", LAYERS)
def test_call_equals_explicit_matrices(kind, method, side, rng):
    layer = LAYERS[kind](rank_blocks=2, method=method, side=side, seed=0)
    model = model_of(layer)
    for vector in layer.ether.vectors.values():
        vector.assign(rng.normal(size=vector.shape))
    x = rng.standard_normal((5, 3, 4)).astype("float32")
    kernel = dense_oracle.effective_kernel(
        method,
        {n: models.values([v])[0] for n, v in layer.ether.vectors.items()},
        models.values([layer.base_kernel])[0].reshape(4, 6),
    )
    expected = np.tanh(x @ kernel + 1).reshape(models.call(model, x).shape)
    np.testing.assert_allclose(models.call(model, x), expected, atol=1e-4)
    trained = model(ops.array(x), training=True)
    np.testing.assert_allclose(
        ops.convert_to_numpy(trained), expected, atol=1e-4
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_config_names_attributes(kind):
    layer = LAYERS[kind](rank_blocks=2, method="oft", side="output")
    config = layer.get_config()
    for name in ("rank_blocks", "method", "side", "dropout", "seed"):
        assert config[name] == getattr(layer, name)
    assert config["activation"] == "tanh"
    assert layer.name.startswith("ether_")


@pytest.mark.parametrize("kind", LAYERS)
def test_config_of_numbers_of_numpy_is_for_json(kind, tmp_path):
    layer = LAYERS[kind](
        rank_blocks=np.int64(2), dropout=np.float32(0.25), seed=np.uint32(3)
    )
    config = layer.get_config()
    found = {name: config[name] for name in ("rank_blocks", "dropout", "seed")}
    assert found == {"rank_blocks": 2, "dropout": 0.25, "seed": 3}
    assert list(map(type, found.values())) == [int, float, int]
    assert json.loads(json.dumps(found)) == found
    model = model_of(layer)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == config


KINDS = {
    **{kind: (make, (3, 4)) for kind, make in LAYERS.items()},
    "conv1d": (lambda **k: EtherConv1D(8, 2, **k), (3, 4)),
    "conv2d": (lambda **k: EtherConv2D(8, 2, groups=2, **k), (3, 3, 8)),
    "conv3d": (lambda **k: EtherConv3D(8, 2, **k), (2, 2, 2, 4)),
    "embedding": (lambda **k: EtherEmbedding(10, 8, **k), (3,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_life(kind, rng, tmp_path):
    """Adapted as `apply` would, saved as what it is, merged to plain."""
    make, shape = KINDS[kind]
    layer = make(
        rank_blocks=2, method="ether+", dropout=0.1, seed=3, name="mine"
    )
    model = keras.Sequential([keras.Input(shape), layer])
    x = rng.uniform(0, 10, (4, *shape)).astype("float32")
    with keras_ether.disabled(model):
        base = models.call(model, x)
    np.testing.assert_array_equal(models.call(model, x), base)
    assert {id(v) for v in model.trainable_variables} == {
        id(v) for v in layer.ether.vectors.values()
    }
    for vector in layer.ether.vectors.values():
        vector.assign(rng.normal(size=vector.shape))
    model.compile("adam", "mse")
    model.fit(x, np.zeros_like(base), verbose=0)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-3

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[0]) is type(layer)
    assert again.layers[0].get_config() == layer.get_config()
    np.testing.assert_array_equal(models.call(again, x), active)
    checks.equal(again.weights, models.values(model.weights))
    flags = [[v.trainable for v in m.weights] for m in (again, model)]
    assert flags[0] == flags[1]

    plain = getattr(keras.layers, type(layer).__name__.removeprefix("Ether"))
    keras_ether.merge(model)
    assert type(layer) is plain
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-4)


def test_embedding_of_given_weights(rng):
    weights = rng.standard_normal((10, 8)).astype("float32")
    layer = EtherEmbedding(10, 8, weights=weights, method="ether+")
    ids = np.array([[1, 9]])
    rows = ops.convert_to_numpy(layer(ids))
    np.testing.assert_array_equal(rows, weights[ids])


def test_only_vectors_train():
    layer = EtherDense(6, rank_blocks=2, method="ether+")
    layer.build((None, 4))
    assert sum(int(np.prod(v.shape)) for v in layer.trainable_weights) == 20
    assert not layer.bias.trainable


def test_masks_pass_through(rng):
    model = keras.Sequential(
        [
            keras.Input((3, 4)),
            keras.layers.Masking(),
            EtherDense(4, rank_blocks=2),
            keras.layers.GlobalAveragePooling1D(),
        ]
    )
    x = rng.standard_normal((2, 3, 4)).astype("float32")
    padded = x.copy()
    padded[:, 2] = 0
    np.testing.assert_allclose(
        models.call(model, padded), models.call(model, x[:, :2]), atol=1e-6
    )


def test_merge_and_remove_leave_the_plain_class(rng):
    x = rng.standard_normal((5, 3, 4)).astype("float32")
    for verb in (keras_ether.merge, keras_ether.remove):
        layer = EtherDense(6, rank_blocks=2)
        model = model_of(layer)
        with keras_ether.disabled(model):
            base = models.call(model, x)
        active = models.call(model, x)
        verb(model)
        assert type(layer) is keras.layers.Dense
        assert len(layer.trainable_weights) == 2
        expected = active if verb is keras_ether.merge else base
        np.testing.assert_allclose(models.call(model, x), expected, atol=1e-5)


def test_blocks_that_do_not_divide_are_an_error():
    layer = EtherDense(6, rank_blocks=3, name="mine")
    with pytest.raises(ValueError, match=r"'mine'.*d=4.*f=6.*\[1, 2\]"):
        layer.build((None, 4))
    # Only the transformed side counts.
    EtherDense(6, rank_blocks=3, side="output").build((None, 4))


def test_bad_argument_is_an_error():
    with pytest.raises(ValueError, match="rank_blocks=0"):
        EtherDense(6, rank_blocks=0)
    for name in ("rank_blocks", "seed", "dropout"):
        with pytest.raises(ValueError, match=f"{name}=True"):
            EtherDense(6, **{name: True})


class Unbuilt(keras.Model):
    """Its layers are built while Keras infers the shapes of a first call."""

    def __init__(self):
        super().__init__()
        self.first = EtherDense(8, rank_blocks=2)
        self.second = EtherDense(
            4, rank_blocks=2, method="ether+", strength="learned", dropout=0.1
        )

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("trains_first", [True, False])
def test_layers_of_a_model_without_build(trains_first):
    model = Unbuilt()
    x = np.ones((3, 8), "float32")
    model.compile("sgd", "mse", run_eagerly=True)
    if trains_first:
        model.fit(x, np.ones((3, 4)), verbose=0)
    assert model(x).shape == (3, 4)
    with keras_ether.disabled(model):
        off = models.call(model, x)
    assert np.abs(models.call(model, x) - off).max() > 1e-3
    assert model.first.ether.runtime_strength.shape == ()
