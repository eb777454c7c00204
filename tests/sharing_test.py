"""Equal names, nested models, shared layers and tied weights."""

import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree
from tests import models

pytestmark = pytest.mark.filterwarnings("ignore:.*is frozen now")


def planned(model, targets):
    report = keras_ether.plan(model, targets=targets, print_fn=str)
    return [row.path for row in report.rows]


def adapted(model):
    return list(LayerTree(model).adapted)


def inner(name, size=8):
    inputs = keras.Input((8,))
    x = keras.layers.Dense(size, activation="tanh", name="dense")(inputs)
    return keras.Model(inputs, keras.layers.Dense(8, name="out")(x), name=name)


def nested():
    """Models three deep; all have layers of the same two names."""
    middle_inputs = keras.Input((8,))
    x = inner("left")(middle_inputs)
    x = inner("right")(x)
    x = keras.layers.Dense(8, name="dense")(x)
    middle = keras.Model(middle_inputs, x, name="middle")
    return keras.Sequential(
        [keras.Input((8,)), middle, keras.layers.Dense(8, name="dense")]
    )


NESTED = [
    "middle/left/dense",
    "middle/left/out",
    "middle/right/dense",
    "middle/right/out",
    "middle/dense",
    "dense",
]


@pytest.fixture
def x(rng):
    return rng.standard_normal((4, 8)).astype("float32")


def check_merge(model, x):
    """Merging changes no output; returns the outputs."""
    active = models.call(model, x)
    keras_ether.merge(model)
    np.testing.assert_allclose(models.call(model, x), active, atol=1e-5)
    return active


def test_paths_in_nested_models_tell_equal_names_apart():
    model = nested()
    assert planned(model, "all-linear") == NESTED
    assert planned(model, ["out"]) == ["middle/left/out", "middle/right/out"]
    assert planned(model, ["middle/right/out"]) == ["middle/right/out"]
    assert planned(model, "dense") == planned(model, ["dense"])
    assert planned(model, "middle/(left|right)/dense") == [NESTED[0], NESTED[2]]
    assert planned(model, r"middle/(left|right)/dense") == [
        "middle/left/dense",
        "middle/right/dense",
    ]
    asked = []
    keras_ether.plan(
        model,
        targets=lambda path, layer: asked.append((path, layer)) or True,
        print_fn=str,
    )
    assert [path for path, _ in asked] == NESTED
    assert len({id(layer) for _, layer in asked}) == len(NESTED)


def test_only_the_one_of_equal_names_that_is_meant_changes(x):
    model = nested()
    flags = [v.trainable for v in model.variables]
    base = models.call(model, x)
    keras_ether.apply(
        model, targets=["middle/right/dense"], seed=0, method="ether"
    )
    assert adapted(model) == ["middle/right/dense"]
    assert [v.path.rpartition("/")[2] for v in model.trainable_variables] == [
        "input_u"
    ]
    models.compile_and_fit(model, x)
    assert np.abs(check_merge(model, x) - base).max() > 1e-4
    assert [v.trainable for v in model.variables] == flags


def test_equal_names_in_a_layer_all_train(x):
    """Also where Keras gives their variables equal paths."""

    class Pair(keras.Model):
        def __init__(self):
            super().__init__()
            self.a = keras.layers.Dense(8, name="x")
            self.b = keras.layers.Dense(8, name="x")

        def build(self, shape):
            self.a.build(shape)
            self.b.build(shape)
            self.built = True

        def call(self, x):
            return self.b(ops.tanh(self.a(x)))

    model = Pair()
    model.build((None, 8))
    keras_ether.apply(model, seed=0)
    vectors = [y.ether.input_u for y in (model.a, model.b)]
    before = models.values(vectors)
    models.compile_and_fit(model, x)
    for now, was in zip(models.values(vectors), before, strict=True):
        assert np.abs(now - was).max() > 1e-4
    check_merge(model, x)


def test_model_that_is_called_twice_is_adapted_once(rng):
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    tower = inner("tower")
    model = keras.Model([a, b], keras.layers.Dot(1)([tower(a), tower(b)]))
    data = [rng.standard_normal((4, 8)).astype("float32") for _ in "ab"]
    base = models.call(model, data)
    keras_ether.apply(model, seed=0, method="ether")
    assert adapted(model) == ["tower/dense", "tower/out"]
    assert len(model.trainable_variables) == 2
    assert np.abs(models.call(model, data) - base).max() > 1e-4
    check_merge(model, data)


def test_layer_under_two_names_in_one_model_is_adapted_once(x):
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(8, name="x")
            self.again = self.first
            self.both = [self.first, keras.layers.Dense(8, name="y")]

        def build(self, shape):
            self.first.build(shape)
            self.both[1].build(shape)

        def call(self, x):
            for layer in (self.first, self.again, *self.both):
                x = layer(x)
            return x

    model = Twice()
    model.build((None, 8))
    keras_ether.apply(model, seed=0)
    assert adapted(model) == ["x", "y"]
    check_merge(model, x)


def test_two_models_share_a_layer(x):
    """It is adapted for both, by whichever of them is passed."""
    shared = keras.layers.Dense(8, name="shared")
    one, two = (
        keras.Sequential(
            [keras.Input((8,)), shared, keras.layers.Dense(4, name=name)]
        )
        for name in ("top_of_one", "top_of_two")
    )
    base = models.call(two, x)
    keras_ether.apply(one, targets=["shared"], seed=0, method="ether")
    assert adapted(one) == adapted(two) == ["shared"]
    active = models.call(two, x)
    assert np.abs(active - base).max() > 1e-4
    with pytest.raises(ValueError, match="already: 'shared'"):
        keras_ether.apply(two, method="ether")
    with keras_ether.disabled(two):
        np.testing.assert_array_equal(models.call(two, x), base)
    keras_ether.merge(one)
    assert type(shared) is keras.layers.Dense
    np.testing.assert_allclose(models.call(two, x), active, atol=1e-5)
    assert all(v.trainable for v in [*one.variables, *two.variables])


class TiedModel(keras.Model):
    """A language model whose output is multiplied by its table."""

    def __init__(self, make_table):
        super().__init__()
        self.table = make_table
        self.hidden = keras.layers.Dense(8, activation="tanh", name="hidden")

    def build(self, shape):
        self.table.build(shape)
        self.hidden.build((*shape, 8))
        self.built = True

    def call(self, ids):
        x = self.hidden(self.table(ids))
        if isinstance(self.table, keras.layers.ReversibleEmbedding):
            return self.table(x, reverse=True)
        return ops.matmul(x, ops.transpose(self.table.embeddings))


@pytest.mark.parametrize(
    "kind", [keras.layers.Embedding, keras.layers.ReversibleEmbedding]
)
def test_output_tied_to_an_embedding_follows_it(kind, rng):
    model = TiedModel(kind(12, 8, name="table"))
    model.build((None, 5))
    x = rng.integers(12, size=(4, 5))
    base = models.call(model, x)
    keras_ether.apply(model, targets=["table"], seed=0)
    assert adapted(model) == ["table"]
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, x, verbose=0, epochs=2)
    assert np.abs(models.call(model, x) - base).max() > 1e-4
    check_merge(model, x)


def three_dense():
    a, b = keras.layers.Dense(8, name="a"), keras.layers.Dense(8, name="b")
    c = keras.layers.Dense(8, name="c")
    return keras.Sequential([keras.Input((8,)), a, b, c])


def tie(layer, attribute, variable):
    layer._tracker.unlock()
    setattr(layer, attribute, variable)
    layer._tracker.lock()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'a', 'b'"),
        ({"targets": ["a"]}, "'a', 'b'"),
        ({"exclude": ["b"]}, "'a', 'b'"),
        ({"trainable": ["b"]}, "'a', 'b'"),
    ],
    ids=str,
)
def test_tied_kernel_is_an_error_if_either_is_a_target(options, message):
    model = three_dense()
    a, b, _ = model.layers
    tie(b, "_kernel", a._kernel)
    for verb in (keras_ether.plan, keras_ether.apply):
        with pytest.raises(ValueError, match=f"share one kernel: {message}"):
            verb(model, **options)
    assert adapted(model) == []
    assert all(v.trainable for v in model.variables)


def test_tied_kernels_that_are_left_out_stay_tied(x):
    model = three_dense()
    a, b, _ = model.layers
    tie(b, "_kernel", a._kernel)
    keras_ether.apply(model, exclude=["a", "b"], seed=0)
    assert adapted(model) == ["c"]
    assert a._kernel is b._kernel
    check_merge(model, x)


def test_tied_biases_do_no_harm(x):
    model = three_dense()
    a, b, _ = model.layers
    tie(b, "bias", a.bias)
    keras_ether.apply(model, method="ether+", seed=0)
    assert adapted(model) == ["a", "b", "c"]
    models.compile_and_fit(model, x)
    check_merge(model, x)
    assert b.bias is a.bias


@pytest.mark.parametrize("as_model", [True, False])
def test_kernel_that_another_part_computes_with_is_an_error(as_model):
    """An outer layer that holds the variable sees no adapter around it."""

    class Holder(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="holder")
            self.part = keras.layers.Dense(8, name="part")
            self.other = keras.layers.Dense(8, name="other")

        def build(self, shape):
            self.part.build(shape)
            self.other.build(shape)
            self.matrix = self.part.kernel

        def call(self, x):
            return self.other(ops.matmul(self.part(x), self.matrix))

    model = holder = Holder()
    holder.build((None, 8))
    if as_model:
        model = keras.Sequential([keras.Input((8,)), holder])
    prefix = "holder/" if as_model else ""
    message = re.escape(f"share one kernel: 'holder', '{prefix}part'")
    with pytest.raises(ValueError, match=message):
        keras_ether.apply(model)
    assert adapted(model) == []
    keras_ether.apply(model, targets=["other"])
    assert adapted(model) == [f"{prefix}other"]


def test_kernel_that_an_operation_or_a_function_holds_is_an_error():
    inputs = keras.Input((8,))
    a = keras.layers.Dense(8, name="a", use_bias=False)
    y = keras.layers.Dense(8, name="b")(a(inputs))
    kernel = a.kernel
    by_operation = ops.matmul(y, kernel)
    by_function = keras.layers.Lambda(
        lambda x: ops.matmul(x, kernel), output_shape=(8,), name="tied"
    )(y)
    reads = keras.layers.Lambda(
        lambda x: ops.matmul(x, a.kernel), output_shape=(8,)
    )(y)
    for outputs, others in (
        (by_operation, "'matmul.*', 'a'"),
        (by_function, "'a', 'tied'"),
    ):
        model = keras.Model(inputs, outputs)
        with pytest.raises(ValueError, match=f"share one kernel: {others}"):
            keras_ether.apply(model)
        assert adapted(model) == []
    # What reads the layer's kernel in a call gets the transformed one.
    model = keras.Model(inputs, reads)
    keras_ether.apply(model, method="ether", seed=0)
    check_merge(model, np.ones((2, 8), "float32"))


def levels_around(inner):
    """A functional model, a sequential one and a subclassed one, each around
    the one before."""

    class Listing(keras.Model):
        def __init__(self, parts):
            super().__init__()
            self.parts = [parts]

        def call(self, x):
            return self.parts[0](x)

    inputs = keras.Input((8,))
    # A name of its own: Keras lists PyTorch's parameters by their paths.
    x = keras.layers.Dense(4, name="top")(inner(inputs))
    functional = keras.Model(inputs, x)
    sequential = keras.Sequential([keras.Input((8,)), functional])
    subclassed = Listing(sequential)
    subclassed(np.zeros((1, 8), "float32"))
    return functional, sequential, subclassed


torch_only = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="it is PyTorch's"
)


def check_parameters(outer):
    expected = {id(v.value) for v in outer.variables}
    assert {id(p) for p in outer.parameters()} == expected
    held = {t.data_ptr() for t in outer.state_dict().values()}
    assert held == {v.value.data_ptr() for v in outer.variables}


@torch_only
@pytest.mark.parametrize("verb", ["merge", "remove"])
@pytest.mark.parametrize("fitted", [False, True])
def test_parameters_of_models_around(fitted, verb, x):
    import torch

    part = inner("inner")
    around = levels_around(part)
    wrapped = torch.nn.Sequential(around[-1])
    for outer in around:
        if fitted:
            models.compile_and_fit(outer, x)
        check_parameters(outer)
    for _ in range(2):
        keras_ether.apply(part, method="ether+", rank_blocks=2, seed=0)
        for outer in around:
            check_parameters(outer)
        assert len(list(wrapped.parameters())) == len(around[-1].variables)
        getattr(keras_ether, verb)(part)
        for outer in around:
            check_parameters(outer)
        assert len(list(wrapped.parameters())) == len(around[-1].variables)


@torch_only
def test_loop_by_hand_over_a_model_around(x):
    """Vectors train, and gradients do not pile up."""
    import torch

    part = inner("inner")
    outer = levels_around(part)[1]
    x = torch.tensor(x)
    keras_ether.apply(part, seed=0, method="ether")
    vectors = [y.ether.input_u for y in (part.layers[1], part.layers[2])]
    before = models.values(vectors)
    optimizer = torch.optim.SGD(outer.parameters(), 0.1)
    gradients = []
    for _ in range(2):
        outer.zero_grad()
        outer(x).pow(2).mean().backward()
        gradients.append(vectors[0].value.grad.clone())
    torch.testing.assert_close(*gradients)
    optimizer.step()
    for now, was in zip(models.values(vectors), before, strict=True):
        assert np.abs(now - was).max() > 1e-6


def test_model_around_is_fitted_after_compiling_again(x):
    def fitted(before):
        part = inner("inner")
        outer = levels_around(part)[1]
        if before:
            models.compile_and_fit(outer, x, run_eagerly=False)
        draw = np.random.default_rng(1)
        for variable in outer.weights:
            variable.assign(draw.standard_normal(variable.shape))
        keras_ether.apply(part, seed=0)
        models.compile_and_fit(outer, x, epochs=4, run_eagerly=False)
        return models.values(y.ether.input_u for y in part.layers[1:])

    for one, other in zip(fitted(True), fitted(False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
