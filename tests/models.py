"""Models that tests adapt: small random ones, and the real pretrained one."""

import functools

import keras
import keras_hub
import numpy as np
from keras import ops

from examples.real_models import minilm


def mlp():
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(32, activation="relu", name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(8, use_bias=False, name="second"),
            keras.layers.Dense(4, name="head"),
        ]
    )


def functional():
    """Two inputs, one shared layer, an einsum layer, a skip connection."""
    a, b = keras.Input((6, 8), name="a"), keras.Input((6, 8), name="b")
    shared = keras.layers.Dense(8, activation="tanh", name="shared")
    x = keras.layers.Add()([shared(a), shared(b)])
    y = keras.layers.EinsumDense(
        "btd,dnh->btnh", (6, 2, 4), bias_axes="nh", name="split"
    )(x)
    y = keras.layers.EinsumDense(
        "btnh,nhd->btd", (6, 8), bias_axes="d", name="join"
    )(y)
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = keras.layers.Dense(4, name="head")(x)
    return keras.Model({"a": a, "b": b}, outputs)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [
            keras.layers.Dense(16, activation="gelu") for _ in range(2)
        ]
        self.attention = keras.layers.MultiHeadAttention(2, 8)
        self.head = keras.layers.Dense(4, name="head")

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.head.build((input_shape[0], input_shape[2]))
        self.built = True

    def call(self, x):
        for block in self.blocks:
            x = x + block(x)
        x = x + self.attention(x, x)
        return self.head(ops.mean(x, axis=1))


def subclassed():
    model = Subclassed()
    model.build((None, 6, 16))
    return model


def bert_backbone(**kwargs):
    config = {
        "vocabulary_size": 100,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": 12,
    }
    return keras_hub.models.BertBackbone(**(config | kwargs))


def bert():
    return keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=4)


ALL = {
    "mlp": mlp,
    "functional": functional,
    "subclassed": subclassed,
    "bert": bert,
}


def inputs_of(name, rng, samples=8):
    """Random inputs of a model in `ALL`."""

    def normal(*shape):
        return rng.standard_normal((samples, *shape)).astype("float32")

    if name == "bert":
        padding_mask = np.ones((samples, 10), "int32")
        padding_mask[: samples // 2, 7:] = 0
        return {
            "token_ids": rng.integers(0, 100, (samples, 10)).astype("int32"),
            "segment_ids": np.zeros((samples, 10), "int32"),
            "padding_mask": padding_mask,
        }
    if name == "functional":
        return {"a": normal(6, 8), "b": normal(6, 8)}
    return normal(16) if name == "mlp" else normal(6, 16)


# Tracing a step takes TensorFlow several times as long as running a few. (JAX
# finds most of its steps compiled, and PyTorch compiles none.)
EAGERLY = keras.backend.backend() == "tensorflow"


def compile_and_fit(model, x, epochs=2, run_eagerly=EAGERLY):
    """Trains a few steps on made-up labels.

    Tests of what comes after a compiled step say `run_eagerly=False`.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=run_eagerly,
    )
    build_optimizer(model)
    return fit(model, x, epochs)


def build_optimizer(model):
    """Else TensorFlow traces a first step twice, since it makes variables."""
    model.optimizer.build(model.trainable_variables)


def fit(model, x, epochs=2):
    """Trains a compiled model a few steps on made-up labels."""
    samples = len(next(iter(x.values())) if isinstance(x, dict) else x)
    y = np.arange(samples) % 4
    return model.fit(
        x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0
    )


def values(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def call(model, x):
    """The model's outputs, computed without compilation."""
    return np.array(ops.convert_to_numpy(model(x, training=False)))


@functools.cache
def minilm_folder():
    """Folder of the pretrained all-MiniLM-L6-v2."""
    return minilm.preset()
