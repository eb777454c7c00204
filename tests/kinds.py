"""One tiny model for every way that a kernel lies in a layer."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether

L = keras.layers

# Layer, shape of one sample. Channels and filters are 4 or 8, or twice that for
# two groups; biases are not zero and activations not linear.
LAYERS = {
    "dense": (lambda **k: L.Dense(8, **k), (4,)),
    "einsum": (
        lambda **k: L.EinsumDense(
            "btd,dnh->btnh", (3, 2, 4), bias_axes="nh", **k
        ),
        (3, 4),
    ),
    "conv1d": (lambda **k: L.Conv1D(8, 3, padding="causal", **k), (4, 4)),
    "conv2d": (
        lambda **k: L.Conv2D(8, 2, strides=2, padding="same", **k),
        (3, 3, 4),
    ),
    "groups": (lambda **k: L.Conv2D(8, 2, groups=2, **k), (3, 3, 8)),
    "channels first": (
        lambda **k: L.Conv2D(8, 2, data_format="channels_first", **k),
        (4, 3, 3),
    ),
    "conv3d": (lambda **k: L.Conv3D(8, 2, **k), (2, 2, 2, 4)),
    "conv1d transposed": (lambda **k: L.Conv1DTranspose(8, 2, **k), (3, 4)),
    "conv2d transposed": (
        lambda **k: L.Conv2DTranspose(
            8, 2, strides=2, data_format="channels_first", **k
        ),
        (4, 2, 2),
    ),
    "conv3d transposed": (
        lambda **k: L.Conv3DTranspose(8, 2, **k),
        (1, 2, 2, 4),
    ),
    "embedding": (lambda **k: L.Embedding(10, 8, **k), (3,)),
    "reversible": (
        lambda **k: keras_hub.layers.ReversibleEmbedding(10, 8, **k),
        (3,),
    ),
}
CONVOLUTIONS = [name for name in LAYERS if "conv" in name] + [
    "groups",
    "channels first",
]
EMBEDDINGS = ["embedding", "reversible"]


def sweep(*values, kinds=None):
    """Every kind with every value: each once, the other pairs nightly."""
    kinds = list(kinds or LAYERS)
    return [
        pytest.param(
            kind,
            value,
            marks=[] if i % len(values) == j else [pytest.mark.nightly],
        )
        for i, kind in enumerate(kinds)
        for j, value in enumerate(values)
    ]


def layer_of(kind):
    """The layer that is adapted, named "target"."""
    make, _ = LAYERS[kind]
    if kind in EMBEDDINGS:
        return make(
            name="target",
            embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
        )
    return make(name="target", activation="tanh", bias_initializer="ones")


def model_of(kind, layer=None, dtype=None):
    """A model around one such layer, with a layer "head" behind it."""
    _, shape = LAYERS[kind]
    if dtype is None:
        dtype = "int32" if kind in EMBEDDINGS else "float32"
    inputs = keras.Input(shape, dtype=dtype)
    layer = layer or layer_of(kind)
    x = layer(inputs)
    if kind == "reversible":
        # With nothing between, an orthogonal G would cancel itself.
        x = layer(keras.ops.tanh(x), reverse=True)
    x = L.Flatten()(x)
    return keras.Model(inputs, L.Dense(2, name="head")(x))


def inputs_of(kind, rng, samples=4):
    _, shape = LAYERS[kind]
    if kind in EMBEDDINGS:
        return rng.integers(0, 10, (samples, *shape)).astype("int32")
    return rng.standard_normal((samples, *shape)).astype("float32")


def adapt(model, method, rng, **arguments):
    """Adapts the layer "target", gives it any vectors and returns it."""
    usual = {"side": "both", "rank_blocks": 2, "trainable": ["head"]}
    arguments = usual | arguments
    keras_ether.apply(model, method=method, targets=["target"], **arguments)
    layer = model.get_layer("target")
    randomize(layer, rng)
    return layer


def randomize(layer, rng):
    """Gives the vectors of an adapted layer any values; returns them."""
    for vector in layer.ether.vectors.values():
        vector.assign(rng.normal(size=vector.shape))
    return {
        name: np.array(keras.ops.convert_to_numpy(vector))
        for name, vector in layer.ether.vectors.items()
    }
