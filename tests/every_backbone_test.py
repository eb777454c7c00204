"""The life of an adapter in every backbone of KerasHub.

One backbone of each family is tested by default, and all with `-m nightly`.
"""

import contextlib

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


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Makes XLA compile without optimizing: each program runs once or twice."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def marked(name, entry):
    marks = [] if entry.quick else [pytest.mark.nightly]
    if entry.broken:
        marks.append(pytest.mark.xfail(reason=entry.broken, strict=True))
    return pytest.param(name, marks=marks)


NAMES = [marked(*item) for item in hub_backbones.ENTRIES.items()]


@pytest.fixture
def entry(name):
    entry = hub_backbones.ENTRIES[name]
    if keras.backend.backend() == "torch" and entry.torch_needs:
        pytest.importorskip(entry.torch_needs)
    return entry


def test_every_exported_backbone_has_an_entry():
    assert hub_backbones.exported() == set(hub_backbones.ENTRIES)


@pytest.mark.parametrize("name", NAMES)
def test_default_targets_match_something(name, entry):
    model = build(name, entry)
    options = {"rank_blocks": 2, "exclude": entry.exclude}
    with skipped_if_nothing_can_be_adapted(entry):
        planned = keras_ether.plan(model, print_fn=str, **options)
    every = keras_ether.plan(model, targets="all", print_fn=str, **options)
    assert {row.path for row in planned.rows} <= {
        row.path for row in every.rows
    }
    keras_ether.apply(model, **options)
    assert keras_ether.summary(model, print_fn=str).rows == planned.rows


@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize("name", NAMES)
def test_life_of_an_adapter(name, entry, method):
    model, x = build(name, entry), entry.inputs()
    base_weights = models.values(model.weights)
    base = Probe(model).outputs(x)

    adapt(model, entry, method)
    probe = Probe(model)
    started = probe.outputs(x)
    if method == "ether+":
        assert_equal(started, base)
    else:
        assert distance(started, base) > 1e-3
    check_training_step(probe, x)
    active = probe.outputs(x)
    assert distance(active, started) > 1e-5
    keras_ether.merge(model)
    assert distance(Probe(model).outputs(x), active) < 1e-4

    for variable, value in zip(model.weights, base_weights, strict=True):
        variable.assign(value)
    adapt(model, entry, method)
    keras_ether.remove(model)
    assert_equal(models.values(model.weights), base_weights)
    assert_equal(Probe(model).outputs(x), base)


class Probe(keras.Model):
    """Runs a model and trains it towards a fixed pattern.

    It stands around the model and is made anew after each change of it, so
    that nothing compiled for one state is used for another.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.built = True
        self.compile(
            keras.optimizers.SGD(0.1),
            # Where a backend can do without, compilation takes longer than
            # what it saves here.
            run_eagerly=keras.backend.backend() != "jax",
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


def adapt(model, entry, method):
    options = {
        "rank_blocks": 2,
        "method": method,
        "targets": entry.targets,
        "exclude": entry.exclude,
    }
    with skipped_if_nothing_can_be_adapted(entry):
        keras_ether.apply(model, seed=0, **options)


@contextlib.contextmanager
def skipped_if_nothing_can_be_adapted(entry):
    """Skips purely convolutional networks where convolutions are no targets."""
    try:
        yield
    except ValueError as error:
        if entry.targets == "all" and "matched: none" in str(error):
            pytest.skip("no layer of it is of a kind that can be adapted")
        raise


def check_training_step(probe, x):
    """Trains one step, which must move every vector and nothing else."""
    vectors = {
        id(vector)
        for layer in walk(probe).values()
        if kinds.is_adapted(layer)
        for vector in layer.ether.vectors.values()
    }
    before = models.values(probe.weights)
    probe.train_on_batch(x)
    for variable, value in zip(probe.weights, before, strict=True):
        moved = not np.array_equal(models.values([variable])[0], value)
        assert moved == (id(variable) in vectors), variable.path


def assert_equal(some, others):
    for a, b in zip(some, others, strict=True):
        np.testing.assert_array_equal(a, b)


def distance(some, others):
    """Largest difference, in relation to the largest value of its output."""
    return max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(some, others, strict=True)
    )
