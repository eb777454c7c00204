"""Adapters in models that a distribution has placed on several devices."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree
from tests import checks
from tests import models

ROOT = Path(__file__).parents[1]
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="Keras cuts variables up on JAX only",
)
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="is about TensorFlow's strategies",
)
on_torch = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="is about PyTorch's parameters"
)
pytestmark = checks.WITHOUT_ADVICE


def model_parallel(rules, shape=(2, 4)):
    devices = keras.distribution.list_devices()[: shape[0] * shape[1]]
    if len(devices) < shape[0] * shape[1]:
        pytest.skip("XLA_FLAGS allow for fewer devices")
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout_map = keras.distribution.LayoutMap(mesh)
    for pattern, axes in rules.items():
        layout_map[pattern] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


KERNELS = {
    "first/kernel": ("batch", "model"),
    "second/kernel": ("model", "batch"),
}


def make_model(units=40):
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(units, activation="gelu", name="first"),
            keras.layers.Dense(24, name="second"),
        ],
        name="m",
    )


def cut(rules):
    """`KERNELS` and more rules, for the paths of `make_model`."""
    return model_parallel({f"m/{p}": a for p, a in (KERNELS | rules).items()})


def parts(variable):
    """The shape of what one device has of a variable, by the layout of now."""
    sharding = variable.value.sharding
    assert len(sharding.device_set) == 8
    return sharding.shard_shape(variable.shape)


def fit(model):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 16)).astype("float32")
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, np.ones((16, 24)), batch_size=8, shuffle=False, verbose=0)
    return x


@on_jax
@pytest.mark.parametrize(
    ("rules", "first", "second"),
    [
        ({}, (4, 4), (4, 10)),
        ({".*/ether/.*": ("model",)}, (1, 4), (1, 10)),
        ({".*/ether/input_.": (None, "batch")}, (4, 2), (4, 5)),
        ({"second/ether/input_u": ("model", "batch")}, (4, 4), (1, 5)),
    ],
    ids=lambda value: "rule" if isinstance(value, dict) else "",
)
def test_a_rule_places_vectors_and_their_moments(rules, first, second):
    with cut(rules).scope():
        model = make_model()
        keras_ether.apply(model, method="ether", rank_blocks=4)
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    adapters = [layer.ether for layer in model.layers]
    assert [parts(a.input_u) for a in adapters] == [first, second]
    moments = [v for v in optimizer.variables if "ether" in v.path]
    assert [parts(v) for v in moments] == [first, first, second, second]


@on_jax
def test_plan_says_where_blocks_cross_devices():
    """Inputs of `first` are cut in 2, its outputs in 4; `second`, turned."""
    with cut({}).scope():
        model = make_model()

        def notes(blocks, **kwargs):
            kwargs["method"] = "ether+"
            return keras_ether.plan(model, blocks, print_fn=str, **kwargs).notes

        assert not notes(4)
        assert not notes(2, targets=["first"], side="input")
        first, second = notes(2)
        assert "output axis of 'first' in 4 parts" in first
        assert "input axis of 'second' in 4 parts" in second
        assert "`rank_blocks` is a multiple of 4" in second
        assert len(notes(1)) == 4
        table = str(keras_ether.plan(model, 1, print_fn=str))
        assert "Communication: the mesh cuts the input" in table
    assert not notes(1)


@on_jax
@pytest.mark.parametrize(
    "method",
    [
        "ether+",
        pytest.param("ether", marks=pytest.mark.nightly),
        pytest.param("oft", marks=pytest.mark.nightly),
    ],
)
def test_kernels_stay_cut_and_values_are_right(method, tmp_path):
    rule = {".*/ether/.*": ("model",)} if method == "ether+" else {}
    with cut(rule).scope():
        model = make_model()
        kernels = [layer.kernel for layer in model.layers]
        base = models.values(kernels)
        cuts = [parts(kernel) for kernel in kernels]
        assert cuts == [(8, 10), (10, 12)]

        keras_ether.apply(model, method=method, rank_blocks=4)
        x = fit(model)
        active = models.call(model, x)
        assert [parts(kernel) for kernel in kernels] == cuts
        for layer in model.layers:
            # The kernel that is looked at, merged or saved is cut as well.
            assert not layer.kernel.sharding.is_fully_replicated

        model.save_weights(tmp_path / "m.weights.h5")
        vectors = models.values(model.trainable_variables)
        for vector in model.trainable_variables:
            vector.assign(ops.ones(vector.shape))
        model.load_weights(tmp_path / "m.weights.h5")
        for now, saved in zip(model.trainable_variables, vectors, strict=True):
            np.testing.assert_array_equal(models.values([now])[0], saved)
        assert [parts(kernel) for kernel in kernels] == cuts

        keras_ether.merge(model)
        assert [parts(kernel) for kernel in kernels] == cuts
        np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
        for kernel, value in zip(kernels, base, strict=True):
            assert np.abs(models.values([kernel])[0] - value).max() > 1e-4
            kernel.assign(value)

        keras_ether.apply(model, method=method, rank_blocks=4)
        keras_ether.remove(model)
        for kernel, value in zip(kernels, base, strict=True):
            np.testing.assert_array_equal(models.values([kernel])[0], value)
        assert [parts(kernel) for kernel in kernels] == cuts


@on_jax
@pytest.mark.parametrize("rows", [8, 512], ids=["activations", "folded"])
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_no_device_sees_a_whole_kernel_while_training(method, rows):
    assert "f32[16,40]" not in compiled_step(method, rows, "model")


@on_jax
def test_a_whole_kernel_would_be_seen():
    assert "f32[16,40]" in compiled_step("ether", 8, None)


def compiled_step(method, rows, axis):
    """The program that computes the gradient of the vectors."""
    import jax

    rules = {"m/first/kernel": (None, axis), "m/second/kernel": (axis, None)}
    with model_parallel(rules, shape=(1, 8)).scope():
        model = make_model()
        keras_ether.apply(model, method=method, rank_blocks=4)

        def loss(vectors, rest, x):
            y, _ = model.stateless_call(vectors, rest, x, training=True)
            return ops.sum(ops.square(y))

        step = jax.jit(jax.grad(loss)).lower(
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            np.ones((rows, 16), "float32"),
        )
        return step.compile().as_text()


@on_jax
@pytest.mark.parametrize(
    ("rules", "cause"),
    [
        ({"second/.*": ("model", "batch", None)}, "of rank at least 3"),
        ({".*/ether/.*": ("model",)}, "partitioned 4 times"),
    ],
    ids=["too broad", "does not divide"],
)
def test_a_rule_that_does_not_fit_is_one_clear_error(rules, cause):
    rules = {f"m/{pattern}": axes for pattern, axes in rules.items()}
    with model_parallel(rules).scope():
        model = keras.Sequential(
            [
                keras.Input((16,)),
                keras.layers.EinsumDense("bd,dhk->bhk", (8, 4), name="second"),
            ],
            name="m",
        )
        message = f"(?s)can't place 'm/second/ether/input_u'.*{cause}.*ether/"
        with pytest.raises(ValueError, match=message):
            keras_ether.apply(model, rank_blocks=2)
        assert type(model.layers[0]) is keras.layers.EinsumDense
        assert all(v.trainable for v in model.variables)


@on_tensorflow
def test_a_mirrored_model_is_adapted_outside_the_scope():
    """In a process of its own, since TensorFlow fixes its devices early."""
    code = """
import keras, numpy as np, tensorflow as tf, keras_ether
from keras_ether.adapters.changes import all_or_none
from keras_ether.surgery import compiled_state
from keras_ether.surgery.layer_tree import LayerTree
from tests.distribution_test import make_model
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
devices = tf.config.list_logical_devices("CPU")
with tf.distribute.MirroredStrategy(devices).scope():
    model = make_model()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
x, y = np.ones((8, 16), "float32"), np.ones((8, 24))
model.fit(x, y, verbose=0)
optimizer = model.optimizer
keras_ether.apply(model)
vector = model.layers[0].ether.input_u
model.fit(x, y, verbose=0)
tree = LayerTree(model)
with np.testing.assert_raises(KeyError), all_or_none() as made:
    compiled_state.reset(made, tree)
    raise KeyError
assert optimizer.built and optimizer.iterations.numpy() == 1
active = model.predict(x, verbose=0)
keras_ether.merge(model)
np.testing.assert_allclose(model.predict(x, verbose=0), active, atol=1e-5)
for variable in (vector, model.layers[0].kernel):
    first, second = [copy.numpy() for copy in variable.value.values]
    np.testing.assert_array_equal(first, second)
model.fit(x, y, verbose=0)
assert model.optimizer is optimizer and optimizer.iterations.numpy() == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@on_torch
@pytest.mark.parametrize("verb", [keras_ether.merge, keras_ether.remove])
@pytest.mark.parametrize("name", models.ALL)
def test_parameters_of_a_torch_module_are_what_trains(name, verb):
    """`DistributedDataParallel` waits for all that ask for a gradient."""
    model = models.ALL[name]()
    keras_ether.apply(model, targets="all", rank_blocks=1)
    adapted = LayerTree(model).adapted.values()
    vectors = [v for y in adapted for v in y.ether.vectors.values()]
    asking = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(v.value) for v in vectors} <= asking
    assert asking == {id(v.value) for v in model.trainable_variables}
    verb(model)
    parameters = {id(p) for p in model.parameters()}
    assert parameters == {id(v.value) for v in model.variables}
    assert not any(re.search("ether", p) for p, _ in model.named_parameters())
