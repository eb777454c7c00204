"""Runs and trains any model, whatever its inputs and outputs are."""

import keras
import numpy as np
from keras import ops

from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree
from tests import models


class Probe(keras.Model):
    """Runs a model and trains it towards a fixed pattern.

    It stands around the model and is made anew after each change of it, so
    that nothing compiled for one state is used for another.
    """

    def __init__(self, model, eager=False):
        super().__init__()
        self.model = model
        self.built = True
        self.compile(
            keras.optimizers.SGD(0.1),
            # Where a backend can do without, compilation takes longer than
            # what it saves here.
            run_eagerly=eager or keras.backend.backend() != "jax",
        )

    def call(self, x, training=None):
        return self.model(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        # Of normalized outputs the mean square would be a constant.
        return sum(
            ops.mean(ops.square(output - pattern_like(output)))
            for output in floats(y_pred)
        )

    def outputs(self, x):
        return [np.array(y) for y in floats(self.predict_on_batch(x))]


def floats(outputs):
    return [
        output
        for output in keras.tree.flatten(outputs)
        if "float" in keras.backend.standardize_dtype(output.dtype)
    ]


def pattern_like(output):
    size = int(np.prod(output.shape))
    return ops.reshape(ops.cos(ops.arange(size, dtype="float32")), output.shape)


def vectors_of(model):
    """Ids of the vectors of all adapters of a model."""
    return {
        id(vector)
        for layer in LayerTree(model).layers.values()
        if kinds.is_adapted(layer)
        for vector in layer.ether.vectors.values()
    }


def assert_moves(train, model, expected):
    """Checks that `train()` changes the weights with these ids and no other."""
    before = models.values(model.weights)
    train()
    wrong = {
        variable.path
        for variable, value in zip(model.weights, before, strict=True)
        if np.array_equal(models.values([variable])[0], value)
        == (id(variable) in expected)
    }
    assert not wrong, wrong


def assert_equal(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a, b)


def distance(some, others):
    """Largest difference, in relation to the largest value of its output."""
    return max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(some, others, strict=True)
    )
