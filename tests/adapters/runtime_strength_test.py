import threading

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree
from tests import kinds
from tests import models


def value(variable):
    return float(ops.convert_to_numpy(variable))


def adapter():
    layer = keras.layers.Dense(4)
    layer.build((None, 4))
    return keras_ether.apply(layer, rank_blocks=2).ether


def test_blocks_may_be_nested_and_overlap():
    ether = adapter()
    first, second, third = (ether.switched_off() for _ in range(3))
    first.__enter__()
    second.__enter__()
    assert value(ether.runtime_strength) == 0
    first.__exit__(None, None, None)
    assert value(ether.runtime_strength) == 0
    third.__enter__()
    third.__exit__(None, None, None)
    assert value(ether.runtime_strength) == 0
    second.__exit__(None, None, None)
    assert value(ether.runtime_strength) == 1


def test_blocks_of_several_threads_leave_the_value_from_before():
    ether = adapter()
    seen = []

    def hold():
        for _ in range(50):
            with ether.switched_off():
                seen.append(value(ether.runtime_strength))

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {0.0}
    assert value(ether.runtime_strength) == 1


def test_a_block_that_fails_ends():
    ether = adapter()
    with pytest.raises(RuntimeError), ether.switched_off():
        raise RuntimeError
    assert value(ether.runtime_strength) == 1


CASES = [
    ("ether", "input"),
    ("ether", "output"),
    ("ether+", None),
    ("oft", None),
]


@pytest.mark.parametrize(("kind", "case"), kinds.sweep(*CASES))
def test_switched_off_every_kind_is_the_base_to_the_bit(kind, case, rng):
    method, side = case
    if kind in kinds.EMBEDDINGS:
        side = None
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    base = models.call(model, x)
    kinds.adapt(model, method, rng, side=side)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-3
    with keras_ether.disabled(model):
        np.testing.assert_array_equal(models.call(model, x), base)
    np.testing.assert_array_equal(models.call(model, x), active)


@pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05")
@pytest.mark.parametrize("name", ["mlp", "bert"])
def test_switching_compiles_nothing_again(name, rng):
    model, x = models.ALL[name](), models.inputs_of(name, rng)
    base = model.predict(x, verbose=0)
    calls = []
    keras_ether.apply(
        model,
        targets="all-linear",
        rank_blocks=2,
        trainable=["head"] if name == "mlp" else None,
    )
    layer = next(
        v for v in LayerTree(model).layers.values() if hasattr(v, "ether")
    )
    activation = layer.activation
    layer.activation = lambda y: (calls.append(1), activation(y))[1]
    active = model.predict(x, verbose=0)
    traced = len(calls)
    with keras_ether.disabled(model):
        np.testing.assert_allclose(model.predict(x, verbose=0), base, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x, verbose=0), active)
    if keras.backend.backend() != "torch":
        assert len(calls) == traced


@keras.saving.register_keras_serializable(package="tests")
class Distilled(keras.Model):
    """Trains against its own base, told by `disabled` in its loss."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(16, activation="tanh")
        self.head = keras.layers.Dense(4, name="head")

    def call(self, x):
        return self.head(self.first(x))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        with keras_ether.disabled(self):
            reference = self.first(x)
        distance = ops.mean(ops.square(self.first(x) - reference))
        return distance + 0.0 * ops.mean(y_pred)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_may_ask_the_base(compiled, rng):
    model = Distilled()
    x = rng.standard_normal((8, 8)).astype("float32")
    model(x)
    base = ops.convert_to_numpy(model.first(x))
    keras_ether.apply(
        model, trainable=["head"], rank_blocks=2, seed=0, method="ether"
    )
    vectors = model.first.ether.vectors["input_u"]
    before = np.array(ops.convert_to_numpy(vectors))
    distance = np.mean((ops.convert_to_numpy(model.first(x)) - base) ** 2)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=not compiled)
    history = model.fit(x, x[:, :4], batch_size=8, epochs=2, verbose=0)
    losses = history.history["loss"]
    np.testing.assert_allclose(losses[0], distance, rtol=1e-4)
    assert losses[1] < losses[0]
    assert np.abs(ops.convert_to_numpy(vectors) - before).max() > 1e-4
    assert value(model.first.ether.runtime_strength) == 1


def test_a_callback_may_ask_the_base(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    base = models.call(model, x)
    keras_ether.apply(model, trainable=["head"], rank_blocks=2, method="ether")
    asked = []

    class Ask(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with keras_ether.disabled(self.model):
                asked.append(self.model.predict(x, verbose=0))

    model.compile("sgd", "mse")
    head = model.get_layer("head")
    head.trainable = False
    model.fit(x, base, epochs=2, verbose=0, callbacks=[Ask()])
    for answer in asked:
        np.testing.assert_allclose(answer, base, atol=1e-5)
    assert not np.allclose(model.predict(x, verbose=0), base, atol=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of tf.function"
)
def test_a_function_of_the_users_own_reads_the_switch(rng):
    import tensorflow as tf

    model, x = models.mlp(), models.inputs_of("mlp", rng)
    base = models.call(model, x)
    keras_ether.apply(model, trainable=["head"], rank_blocks=2)
    active = models.call(model, x)
    function = tf.function(lambda x: model(x))

    @tf.function(jit_compile=True)
    def both(x):
        with keras_ether.disabled(model):
            before = model(x)
        return before, model(x)

    np.testing.assert_allclose(function(x), active, atol=1e-6)
    with keras_ether.disabled(model):
        np.testing.assert_allclose(function(x), base, atol=1e-6)
    for found, expected in zip(both(x), (base, active), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of jax.jit")
def test_a_jitted_stateless_call_reads_the_switch(rng):
    import jax

    model, x = models.mlp(), models.inputs_of("mlp", rng)
    base = models.call(model, x)
    keras_ether.apply(model, trainable=["head"], rank_blocks=2)
    active = models.call(model, x)

    def values(variables):
        return [v.value for v in variables]

    function = jax.jit(lambda *a: model.stateless_call(*a)[0])

    def answer():
        return function(
            values(model.trainable_variables),
            values(model.non_trainable_variables),
            x,
        )

    np.testing.assert_allclose(answer(), active, atol=1e-6)
    with keras_ether.disabled(model):
        np.testing.assert_allclose(answer(), base, atol=1e-6)

    @jax.jit
    def inside(x):
        with keras_ether.disabled(model):
            return model(x)

    np.testing.assert_allclose(inside(x), base, atol=1e-6)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-6)
