"""The life of an adapter in every backbone of KerasHub."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.layers import kinds
from keras_ether.targets import walk
from tests import hub_backbones
from tests import models
from tests.hub.entry import build

METHODS = ["ether", "ether+"]
# What KerasHub's own code warns of.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*however, the layer does not have a `build",
        ".*looks like it has unbuilt state",
        ".*was passed an input with a mask attached to it",
        ".*'rwkv_ops' package is not installed",
        "Using a non-tuple sequence for multidimensional indexing",
    )
]


class Probe(keras.Model):
    """Runs a model and trains it against a fixed pattern."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.built = True
        self.compile(
            keras.optimizers.SGD(0.1),
            # Tracing costs more here than it saves; JAX is slow without.
            run_eagerly=keras.backend.backend() != "jax",
        )

    def call(self, x, training=None):
        return self.model(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        # The mean square of a normalized output would be constant.
        return sum(
            ops.mean(ops.square(y - pattern_like(y))) for y in floats(y_pred)
        )

    def outputs(self, x):
        return [np.array(y) for y in floats(self.predict_on_batch(x))]


def floats(outputs):
    return [
        y
        for y in keras.tree.flatten(outputs)
        if "float" in keras.backend.standardize_dtype(y.dtype)
    ]


def pattern_like(y):
    shape = ops.shape(y)
    size = int(np.prod(shape))
    return ops.reshape(ops.cos(ops.arange(size, dtype="float32")), shape)


def adapt(model, entry, method):
    try:
        return keras_ether.apply(
            model,
            rank_blocks=2,
            method=method,
            targets=entry.targets,
            exclude=entry.exclude,
            seed=0,
        )
    except ValueError as error:
        if entry.targets == "all" and "could have matched: none" in str(error):
            pytest.skip("it has no layer of a kind that can be adapted")
        raise


def vectors_of(model):
    return {
        id(vector): f"{path}/{name}"
        for path, layer in walk(model).items()
        if kinds.is_adapted(layer)
        for name, vector in layer.ether.vectors.items()
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", hub_backbones.ENTRIES)
def test_life_of_an_adapter(name, method):
    entry = hub_backbones.ENTRIES[name]
    model, x = build(name, entry), entry.inputs()
    base_weights = models.values(model.weights)
    base = Probe(model).outputs(x)

    adapt(model, entry, method)
    probe = Probe(model)
    started = probe.outputs(x)
    if method == "ether+":
        for now, before in zip(started, base, strict=True):
            np.testing.assert_array_equal(now, before)
    else:
        assert distance(started, base) > 1e-4
    before = models.values(model.weights)
    probe.train_on_batch(x)
    vectors = vectors_of(model)
    moved = set()
    for variable, value in zip(model.weights, before, strict=True):
        if not np.array_equal(models.values([variable])[0], value):
            assert id(variable) in vectors, variable.path
            moved.add(id(variable))
    assert moved == set(vectors), [
        vectors[i] for i in set(vectors) - moved
    ]
    active = probe.outputs(x)
    assert distance(active, started) > 1e-6
    keras_ether.merge(model)
    assert distance(Probe(model).outputs(x), active) < 1e-4

    for variable, value in zip(model.weights, base_weights, strict=True):
        variable.assign(value)
    adapt(model, entry, method)
    keras_ether.remove(model)
    for variable, value in zip(model.weights, base_weights, strict=True):
        np.testing.assert_array_equal(models.values([variable])[0], value)
    for now, before in zip(Probe(model).outputs(x), base, strict=True):
        np.testing.assert_array_equal(now, before)


def distance(some, others):
    """Largest difference, in relation to the largest output."""
    return max(
        np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)
        for a, b in zip(some, others, strict=True)
    )
