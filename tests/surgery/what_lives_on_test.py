"""Traces, models, flags and records from before a change stay right."""

import gc
import random
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery import outer_layers
from tests import checks
from tests import models

pytestmark = checks.WITHOUT_ADVICE
BACKEND = keras.backend.backend()
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8)).astype("float32")
ENDS = [keras_ether.merge, keras_ether.remove, keras_ether.to_lora]
ends = pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)


def dense(units, name, **kwargs):
    return keras.layers.Dense(units, name=name, **kwargs)


def body():
    return keras.Sequential(
        [keras.Input((8,)), dense(8, "a", activation="tanh"), dense(8, "b")],
        name="body",
    )


def task(inner, units=3):
    inputs = keras.Input((8,))
    return keras.Model(inputs, dense(units, "head")(inner(inputs)))


def apply(model, **kwargs):
    kwargs = {"rank_blocks": 2, "seed": 0, "method": "ether"} | kwargs
    return keras_ether.apply(model, **kwargs)


def check_answers(model):
    """`predict` gives what the model's layers compute now."""
    np.testing.assert_allclose(
        model.predict(X, verbose=0), models.call(model, X), atol=1e-5
    )


class Holder(keras.Model):
    """A subclassed model around another one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = [inner]

    def call(self, x):
        return self.inner[0](x)


AROUND = {
    "a functional model": task,
    "a sequential model": lambda inner: keras.Sequential(
        [keras.Input((8,)), inner, dense(2, "top")]
    ),
    "a subclassed model": Holder,
    "two levels": lambda inner: Holder(task(inner)),
}


@pytest.mark.by_turns
@ends
@pytest.mark.parametrize("around", AROUND)
def test_models_around_and_beside_use_the_layers_as_they_are(around, end):
    """Another task on the same layers, or a model around the one passed."""
    inner = body()
    one, other = task(inner), AROUND[around](inner)
    for adapted in (one, inner):
        check_answers(other)
        apply(adapted)
        check_answers(other)
        end(adapted)
        check_answers(other)
        if end is keras_ether.to_lora:
            break


def test_models_around_are_found_among_frozen_objects(monkeypatch):
    """As servers freeze them, for the garbage collector to leave them out."""
    monkeypatch.setattr(outer_layers, "gc", gc)
    inner = body()
    outer = Holder(inner)
    check_answers(outer)
    gc.freeze()
    try:
        apply(inner)
        assert gc.get_freeze_count()
        check_answers(outer)
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("first", ["before", "after"])
def test_a_model_around_trains_what_trains(first):
    inner = body()
    other = task(inner)
    other.compile(keras.optimizers.Adam(0.1), "mse")
    y = np.ones((4, 3), "float32")
    if first == "before":
        other.fit(X, y, verbose=0)
    apply(inner)
    kernels = models.values(layer.base_kernel for layer in inner.layers)
    vectors = models.values(layer.ether.input_u for layer in inner.layers)
    other.fit(X, y, verbose=0)
    checks.equal([layer.base_kernel for layer in inner.layers], kernels)
    for layer, vector in zip(inner.layers, vectors, strict=True):
        assert np.abs(models.values([layer.ether.input_u])[0] - vector).max()
    keras_ether.merge(inner)
    other.fit(X, y, verbose=0)
    assert len(other.optimizer.variables) == 2 + 2 * len(other.weights)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "again", [{"side": "output"}, {"strength": 0.5}, {"seed": 1}], ids=str
)
def test_adapters_of_equal_shapes_that_are_put_back(again):
    inner = body()
    one, other = task(inner), task(inner)
    apply(one, side="input", trainable=["head"])
    check_answers(other), check_answers(one)
    keras_ether.remove(one)
    apply(one, trainable=["head"], **again)
    check_answers(other), check_answers(one)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="it is TensorFlow's")
@pytest.mark.parametrize("end", ENDS[:2], ids=lambda end: end.__name__)
@pytest.mark.parametrize("kwargs", [{}, {"method": "ether+"}], ids=str)
def test_functions_traced_while_it_was_adapted(end, kwargs):
    import tensorflow as tf

    model = apply(task(body()), trainable=["head"], **kwargs)
    for layer in model.layers[1].layers:
        for vector in layer.ether.vectors.values():
            vector.assign(RNG.standard_normal(vector.shape))
    traced = tf.function(lambda x: model(x, training=False))
    gradient = tf.function(
        lambda x: tf.gradients(tf.reduce_sum(model(x, training=True)), x)[0]
    )
    before = traced(X).numpy()
    gradient(tf.constant(X))
    end(model)
    np.testing.assert_allclose(traced(X), models.call(model, X), atol=1e-5)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(model(x, training=True))
    np.testing.assert_allclose(gradient(x), tape.gradient(y, x), atol=1e-5)
    changed = np.abs(models.call(model, X) - before).max() > 1e-3
    assert changed == (end is keras_ether.remove)


VERBS = {
    "merge": keras_ether.merge,
    "remove": keras_ether.remove,
    "to_lora": keras_ether.to_lora,
    "apply": lambda model: apply(model, targets=["head"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_within_disabled_are_errors(verb):
    model = apply(task(body()), targets=["a", "b"])
    active = models.call(model, X)
    types = [type(layer) for layer in model._flatten_layers()]
    with (
        keras_ether.disabled(model),
        pytest.raises(ValueError, match=f"`keras_ether.{verb}` was called wit"),
    ):
        VERBS[verb](model)
    assert [type(layer) for layer in model._flatten_layers()] == types
    np.testing.assert_array_equal(models.call(model, X), active)
    VERBS[verb](model)


def test_a_layer_that_two_adapted_models_share_is_frozen_by_both():
    shared = keras.Sequential([keras.Input((8,)), dense(8, "s")], name="both")
    one, two = (
        keras.Sequential([keras.Input((8,)), shared, dense(8, name)])
        for name in ("one", "two")
    )
    flags = [v.trainable for v in shared.variables]
    apply(one, targets=["one"])
    apply(two, targets=["two"])
    assert not shared.trainable_variables
    keras_ether.merge(one)
    assert not shared.trainable_variables
    assert len(one.trainable_variables) == 2
    two.compile(keras.optimizers.Adam(0.1), "mse")
    before = models.values(shared.variables)
    two.fit(X, X, verbose=0)
    checks.equal(shared.variables, before)
    keras_ether.remove(two)
    assert [v.trainable for v in shared.variables] == flags
    assert shared.get_config()["trainable"] is True


def test_a_model_that_is_gone_holds_nothing():
    class Pair(keras.Model):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def call(self, x):
            return self.second(self.first(x))

    shared = dense(8, "s")
    one, two = (Pair(shared, dense(8, name)) for name in ("one", "two"))
    one(X), two(X)
    apply(one, targets=["one"])
    apply(two, targets=["two"])
    del one
    gc.collect()
    keras_ether.merge(two)
    assert len(shared.trainable_variables) == 2


def test_layers_of_which_no_adapter_is_left_are_thawed():
    """Also those outside of the part that is merged."""
    inner = body()
    model = task(inner)
    apply(model, targets=["a", "b"])
    assert not model.get_layer("head").trainable_variables
    keras_ether.merge(inner)
    assert len(model.trainable_variables) == 6
    assert keras_ether.adapters.changes.RECORD not in vars(model)


@pytest.mark.parametrize("end", ENDS[:2], ids=lambda end: end.__name__)
def test_a_part_without_its_adapters_stays_frozen_while_others_are_left(end):
    inner = body()
    model, flags = task(inner), [v.trainable for v in inner.variables]
    apply(model, targets=["a", "b"], trainable=["head"])
    a, b = inner.layers
    end(a)
    assert type(a) is keras.layers.Dense
    trained = model.trainable_variables
    assert trained == [b.ether.input_u, *model.get_layer("head").variables]
    before = models.values(a.variables)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(X, np.ones((4, 3), "float32"), verbose=0)
    checks.equal(a.variables, before)
    with pytest.raises(ValueError, match="frozen: its LoRA weights would not"):
        a.enable_lora(2)
    end(b)
    assert [v.trainable for v in inner.variables] == flags
    a.enable_lora(2)


def test_lora_is_not_made_of_a_part_that_stays_frozen():
    inner = body()
    model = apply(task(inner), targets=["a", "b"], trainable=["head"])
    before = checks.state(model)
    with pytest.raises(ValueError, match=r"can't have LoRA yet.*: 'a'"):
        keras_ether.to_lora(inner.layers[0])
    checks.unchanged(model, before)
    keras_ether.merge(inner.layers[1])
    keras_ether.to_lora(inner.layers[0])
    assert not inner.layers[0]._kernel.trainable


def test_what_a_file_says_trains(tmp_path):
    """Biases of adapted layers, made trainable by hand."""

    def base():
        keras.utils.set_random_seed(0)
        model = task(body())
        model.compile(keras.optimizers.Adam(1e-2), "mse", run_eagerly=True)
        return model

    def adapted():
        model = apply(base(), targets=["a", "b"], trainable=["head"])
        model.layers[1].get_layer("a").bias.trainable = True
        model.compile(keras.optimizers.Adam(1e-2), "mse", run_eagerly=True)
        return model

    y = np.ones((4, 3), "float32")
    path = tmp_path / "a.safetensors"
    checkpoint = keras_ether.callbacks.AdapterCheckpoint(path)
    model = adapted()
    model.fit(X, y, verbose=0, callbacks=[checkpoint])
    trained = [v.name for v in model.trainable_variables]
    assert len(trained) == 5
    resumed = base()
    keras_ether.callbacks.resume(resumed, path)
    keras_ether.save_adapter(model, path)
    loaded = keras_ether.load_adapter(base(), path)
    for other in (resumed, loaded):
        assert [v.name for v in other.trainable_variables] == trained
        for each in (model, other):
            each.compile(keras.optimizers.SGD(1e-2), "mse", run_eagerly=True)
        np.testing.assert_array_equal(
            models.call(other, X), models.call(model, X)
        )
        other.fit(X, y, verbose=0)
        # The next file has them too.
        keras_ether.save_adapter(other, path)
        third = keras_ether.load_adapter(base(), path)
        np.testing.assert_array_equal(
            models.call(third, X), models.call(other, X)
        )
        keras_ether.remove(other)
        assert all(v.trainable for v in other.weights)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_loading_draws_nothing(dropout, tmp_path):
    path = tmp_path / "a.safetensors"
    model = apply(task(body()), trainable=["head"], dropout=dropout)
    keras_ether.save_adapter(model, path)
    keras_ether.remove(model)
    random.seed(0)
    state = random.getstate()
    keras_ether.load_adapter(model, path)
    assert random.getstate() == state


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_gradients_are_of_the_strength_that_the_variables_say(strength):
    """Set through weights of another model."""
    keras.utils.set_random_seed(0)
    model = apply(keras.Sequential([keras.Input((8,)), dense(16, "a")]))
    twin = keras_ether.copy(model)
    keras_ether.strength(twin, strength)
    model.layers[0].ether.runtime_strength.assign(strength)
    y = np.ones((4, 16), "float32")
    for each in (model, twin):
        each.compile(keras.optimizers.SGD(0.1), "mse")
        each.fit(X, y, verbose=0)
    for one, other in zip(
        models.values(model.weights), models.values(twin.weights), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.isfinite(one).all()


def test_classes_of_users_are_freed(tmp_path):
    path = tmp_path / "a.safetensors"

    def adapted():
        class Scaled(keras.layers.Dense):
            def call(self, inputs, training=None):
                return 2.0 * super().call(inputs, training=training)

        model = keras.Sequential(
            [keras.Input((8,)), Scaled(8), dense(3, "head")]
        )
        apply(model, trainable=["head"])
        keras_ether.save_adapter(model, path)
        keras_ether.remove(model)
        keras_ether.load_adapter(model, path)
        return weakref.ref(Scaled), weakref.ref(model.layers[0])

    found = [adapted() for _ in range(3)]
    keras.utils.clear_session()
    gc.collect()
    assert [ref() for refs in found for ref in refs] == [None] * 6


NOTHING_CHANGED = """
import keras
def state():
    found = []
    todo = [keras.layers.Layer]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        for base in kind.__mro__:
            found.append((base, dict(vars(base))))
    return found
before = state()
import keras_ether
import numpy as np
def same():
    for kind, entries in before:
        now = dict(vars(kind))
        for name in {*entries, *now} - {"__abstractmethods__", "_abc_impl"}:
            assert now.get(name) is entries.get(name), (kind, name)
same()
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
keras_ether.apply(model, seed=0)
model.predict(np.ones((1, 8)), verbose=0)
same()
keras_ether.merge(model)
assert not [name for name in vars(model.layers[0]) if "ether" in name]
assert not [name for name in vars(model) if "ether" in name]
same()
"""


def test_classes_of_keras_stay_as_they_are():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NOTHING_CHANGED],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
