"""Adapted models as they are after training, without the time it takes."""

import keras
import numpy as np
from keras import ops

import keras_ether
from keras_ether.surgery import verbs
from tests import models

ARGUMENTS = {"targets": "all-linear", "trainable": ["head"], "rank_blocks": 2}


def base(name, seed=0):
    """A model of `models.ALL`, with weights as large as trained ones."""
    keras.utils.set_random_seed(seed)
    model = models.ALL[name]()
    move(model.trainable_weights, seed)
    return model


def adapted(name, method="ether", seed=0, base_seed=0):
    """The same with adapters, and vectors and a head that have moved."""
    model = base(name, base_seed)
    arguments = dict(ARGUMENTS)
    if name == "bert":
        # Its head is known, and there is a layer of that name in no task.
        del arguments["trainable"]
    keras_ether.apply(model, method=method, seed=seed, **arguments)
    move(model.trainable_weights, seed + 100)
    return model


def move(variables, seed):
    rng = np.random.default_rng(seed)
    for variable in variables:
        noise = rng.normal(size=variable.shape).astype("float32")
        variable.assign(ops.convert_to_numpy(variable) + 0.3 * noise)


def vectors_of(model):
    """The vectors of all adapters of a model."""
    return [
        vector
        for layer in verbs.adapted_layers(model).values()
        for vector in layer.ether.vectors.values()
    ]
