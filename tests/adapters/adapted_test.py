import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import backends
from tests import kinds
from tests import models

METHODS = ("ether", "ether+")


def model_of(method):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 8)),
            keras.layers.Dense(8, activation="relu", name="dense"),
            keras.layers.EinsumDense("btd,df->btf", (6, 8), name="einsum"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    keras_ether.apply(
        model, method=method, rank_blocks=2, trainable=["head"], seed=0
    )
    for layer in model.layers[:2]:
        for seed, vector in enumerate(layer.ether.vectors.values()):
            vector.assign_add(keras.random.normal(vector.shape, seed=seed))
    return model


# PyTorch's compiler warns of what it does itself while it reads this code.
of_the_compiler = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
]


@pytest.mark.parametrize(
    ("method", "training"),
    [
        pytest.param("ether", False, marks=of_the_compiler),
        pytest.param("ether+", True, marks=of_the_compiler),
    ],
)
def test_compiler_sees_the_adapters(method, training, rng):
    model = model_of(method)
    x = ops.array(rng.standard_normal((4, 6, 8)), "float32")
    expected = models.call(model, x)
    with keras_ether.disabled(model):
        base = models.call(model, x)
    compiled = backends.compile_function(lambda x: model(x, training=training))
    found = np.asarray(ops.convert_to_numpy(compiled(x)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - base).max() > 1e-2


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="of PyTorch's compiler"
)
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=of_the_compiler) for m in METHODS]
)
def test_torch_compile_keeps_the_gradients(method, rng):
    import torch

    model = model_of(method)
    x = ops.array(rng.standard_normal((4, 6, 8)), "float32")
    vectors = [v.value for v in model.trainable_variables]

    def loss(x):
        return (model(x, training=True) ** 2).mean()

    expected = torch.autograd.grad(loss(x), vectors)
    found = torch.autograd.grad(
        torch.compile(loss, backend="aot_eager")(x), vectors
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert torch.abs(reference).max() > 1e-4
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("method", METHODS)
def test_either_form_gives_the_same_outputs_and_gradients(
    method, rng, monkeypatch
):
    model = model_of(method)
    x = rng.standard_normal((4, 6, 8)).astype("float32")

    def loss_and_gradient():
        def loss(x):
            return ops.mean(ops.square(model(x, training=True)))

        (gradient,) = backends.gradients(loss, [x])
        return np.asarray(ops.convert_to_numpy(loss(x))), gradient

    folded = loss_and_gradient()
    monkeypatch.setattr(
        "keras_ether.ops.low_rank.is_cheaper", lambda *arguments: False
    )
    transformed = loss_and_gradient()
    np.testing.assert_allclose(folded[0], transformed[0], rtol=1e-5)
    np.testing.assert_allclose(folded[1], transformed[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["conv2d", "conv2d transposed", "embedding"])
def test_dropout_is_drawn_in_training_only(kind, rng):
    """Though the `call` of these layers takes no `training`."""
    layer, x = kinds.layer_of(kind), kinds.inputs_of(kind, rng)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype), layer])
    base = models.call(model, x)
    keras_ether.apply(
        model, targets="all", rank_blocks=1, dropout=0.5, seed=0, method="ether"
    )
    active = models.call(model, x)
    np.testing.assert_array_equal(models.call(model, x), active)
    seen = set()
    for _ in range(20):
        y = ops.convert_to_numpy(model(x, training=True))
        distances = [np.abs(y - expected).max() for expected in (base, active)]
        assert min(distances) < 1e-4
        seen.add(int(np.argmin(distances)))
    assert seen == {0, 1}


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of TensorFlow's graphs"
)
@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_no_product_goes_sample_by_sample(method, tokens):
    """Without oneDNN that takes several times as long as all rows at once."""
    import tensorflow as tf

    layer = keras.layers.Dense(8)
    layer.build((None, tokens, 8))
    keras_ether.apply(layer, method=method, rank_blocks=2)

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, *layer.trainable_variables])

    x = tf.TensorSpec((2, tokens, 8), "float32")
    operations = gradients.get_concrete_function(x).graph.get_operations()
    types = {operation.type for operation in operations}
    assert "MatMul" in types
    assert "BatchMatMulV2" not in types


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="only TensorFlow's graphs have axes of unknown size there",
)
@pytest.mark.parametrize("method", METHODS)
def test_trains_on_inputs_of_unknown_width(method, rng):
    import tensorflow as tf

    class AnyWidth(keras.layers.Layer):
        def call(self, x):
            return tf.boolean_mask(x, tf.ones(tf.shape(x)[-1:], "bool"), axis=2)

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((4, 8))
    model = keras.Model(
        inputs, keras.layers.Dense(8, name="head")(AnyWidth()(inputs))
    )
    with pytest.warns(UserWarning, match="last linear layer"):
        keras_ether.apply(model, method=method, rank_blocks=2, seed=0)
    before = models.values(model.trainable_weights)
    model.compile("sgd", "mse")
    x = rng.standard_normal((2, 4, 8)).astype("float32")
    model.fit(x, x, verbose=0)
    for value, variable in zip(before, model.trainable_weights, strict=True):
        assert np.abs(value - models.values([variable])[0]).max() > 0


MODULES_OF_FLAX = """
import keras, keras_ether, numpy as np
dense = keras.layers.Dense
model = keras.Sequential([keras.Input((8,)), dense(8), dense(2, name="head")])
x, y = np.ones((4, 8), "float32"), np.ones((4, 2), "float32")
keras_ether.apply(model, trainable=["head"])
model.compile(keras.optimizers.Adam(0.01), "mse")
kernel = np.array(model.layers[0].base_kernel)
losses = model.fit(x, y, epochs=4, verbose=0).history["loss"]
assert losses[-1] < losses[0]
np.testing.assert_array_equal(model.layers[0].base_kernel, kernel)
tuned = model.predict(x, verbose=0)
keras_ether.merge(model)
assert type(model.layers[0]) is dense
np.testing.assert_allclose(model.predict(x, verbose=0), tuned, atol=1e-5)
"""


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Flax's modules are JAX's"
)
def test_layers_that_are_modules_of_flax():
    pytest.importorskip("flax")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MODULES_OF_FLAX],
        env=os.environ | {"KERAS_NNX_ENABLED": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
