"""Quantized models and layers that tests adapt."""

import warnings

import keras
import numpy as np
from keras import ops

L = keras.layers
Q = keras.quantizers


def int4(block_size):
    return Q.Int4QuantizationConfig(block_size=block_size)


# Per channel, and in groups that divide the inputs and that don't; quantizers
# of one's own.
INTEGERS = {
    "int8": Q.Int8QuantizationConfig,
    "int8 weights only": lambda: Q.Int8QuantizationConfig(
        activation_quantizer=None
    ),
    "int4": Q.Int4QuantizationConfig,
    "int4 by channel": lambda: int4(-1),
    "int4 by 3": lambda: int4(3),
}

# An ellipsis is not among them: Keras can't quantize such an `EinsumDense`.
# Odd sizes, kernels of three axes on either side, an expert bank, tables.
LAYERS = {
    "dense": (lambda: L.Dense(5, activation="tanh"), (2, 8)),
    "split": (
        lambda: L.EinsumDense("btd,dnh->btnh", (3, 2, 4), bias_axes="nh"),
        (2, 3, 8),
    ),
    "join": (
        lambda: L.EinsumDense("btnh,nhd->btd", (3, 5), bias_axes="d"),
        (2, 3, 2, 4),
    ),
    "experts": (lambda: L.EinsumDense("ebd,edf->ebf", (2, 6)), (3, 2, 8)),
    "embedding": (lambda: L.Embedding(10, 8), None),
    "reversible": (lambda: L.ReversibleEmbedding(10, 8), None),
    "untied": (
        lambda: L.ReversibleEmbedding(10, 8, tie_weights=False),
        None,
    ),
}


def layer_of(kind):
    """A built layer, with weights that are drawn."""
    make, shape = LAYERS[kind]
    layer = make()
    layer.build(shape)
    return layer


def inputs_of(kind, rng):
    shape = LAYERS[kind][1]
    if shape is None:
        return np.arange(10)[None]
    return rng.standard_normal(shape).astype("float32")


def quantize(model, config):
    """Quantizes what can be, without a word about what can't."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize(config=config)
    return model


class Tokenizer:
    def tokenize(self, text):
        return np.array([ord(letter) % 32 for letter in text], "int32")


class Block(L.Layer):
    """Kernels of two and three axes, with a skip connection."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.split = L.EinsumDense(
            "btd,dnh->btnh", (None, 2, 4), bias_axes="nh", name="split"
        )
        self.join = L.EinsumDense("btnh,nhd->btd", (None, width), name="join")
        self.wide = L.Dense(2 * width, activation="gelu", name="wide")

    def build(self, shape):
        self.split.build(shape)
        self.join.build((*shape[:2], 2, 4))
        self.wide.build(shape)
        self.built = True

    def call(self, x):
        x = x + self.join(ops.tanh(self.split(x)))
        return ops.reshape(self.wide(x), (-1, 2 * ops.shape(x)[1], 8))


def calibrated(mode, weight_bits=4):
    """A model with a block of GPTQ or AWQ kernels, fitted to a line of text.

    The same at every call.
    """
    keras.utils.set_random_seed(0)
    tokens = L.Embedding(32, 8, name="tokens")
    block = Block(8, name="block")
    ids = keras.Input((8,), dtype="int32")
    x = L.GlobalAveragePooling1D()(block(tokens(ids)))
    model = keras.Model(ids, L.Dense(4, name="head")(x))
    make = {"gptq": Q.GPTQConfig, "awq": Q.AWQConfig}[mode]
    config = make(
        ["the quick brown fox jumps over the lazy dog"],
        Tokenizer(),
        weight_bits=weight_bits,
        num_samples=2,
        sequence_length=8,
        group_size=4,
        quantization_layer_structure={
            "pre_block_layers": [tokens],
            "sequential_blocks": [block],
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize(mode, config=config, filters="split|join|wide")
    return model


def ids_of(rng):
    return rng.integers(0, 32, (8, 8)).astype("int32")
