"""Small models of all sorts: refused, or every answer is its own adapter's."""

import collections
import functools

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import ops

import keras_ether
from keras_ether.bank import trial
from tests import models
from tests.bank import banks
from tests.bank.banks import Around

L = keras.layers
BACKEND = keras.backend.backend()
WIDTH = 4
FIVE, SEVEN = trial.SIZES[:2]
COUNTS: collections.Counter = collections.Counter()
pytestmark = pytest.mark.filterwarnings("ignore:.*last linear layer")


class Scaled(Around):
    """An `Around` with a trained weight of its own."""

    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(WIDTH,), name="scale")


def around(function):
    return lambda x: Around(function)(x)


def dense():
    return L.Dense(WIDTH, activation="tanh")


def split_and_joined(x):
    length = x.shape[1]
    y = L.EinsumDense("btd,dnh->btnh", (length, 2, 3), bias_axes="nh")(x)
    return L.EinsumDense("btnh,nhd->btd", (length, WIDTH))(y)


def shared(x):
    layer = dense()
    return layer(x) + layer(ops.flip(x, axis=1))


def nested(x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, dense()(L.LayerNormalization()(inputs)))(x)


def folded_inside(x):
    y = ops.reshape(x, (-1, x.shape[1] * WIDTH))
    return ops.reshape(L.Dense(x.shape[1] * WIDTH)(y), (-1, x.shape[1], WIDTH))


def channels(x):
    y = L.Dense(x.shape[1])(ops.swapaxes(x, 1, 2))
    return ops.swapaxes(y, 1, 2)


known_function = functools.cache(banks.recorded)


def recorded(x, inner):
    """By a function that is recorded once, and never again."""
    if BACKEND == "torch":
        # It has no such function.
        return inner(ops.flip(x, axis=0))
    return known_function(inner)(x)


def halves_changed(x, inner):
    half = ops.shape(x)[0] // 2
    y = inner(ops.concatenate([x[half:], x[:half]]))
    rest = ops.shape(x)[0] - half
    return ops.concatenate([y[rest:], y[:rest]])


# What keeps the examples of a batch apart.
APART = {
    "dense": lambda x: dense()(x),
    "split and joined": split_and_joined,
    "normed": lambda x: L.LayerNormalization()(x),
    "attention": lambda x: L.MultiHeadAttention(2, 2)(x, x),
    "convolution": lambda x: L.Conv1D(WIDTH, 2, padding="same")(x),
    "residual": lambda x: x + dense()(x),
    "shared": shared,
    "nested": nested,
    "folded inside": folded_inside,
    "channels": channels,
    "sorted inside": lambda x: dense()(ops.sort(x, axis=1)),
    "repeated inside": lambda x: dense()(ops.repeat(x, 2, axis=1))[:, ::2],
    "gathered inside": around(
        lambda x, inner: inner(ops.take(x, np.arange(x.shape[1])[::-1], axis=1))
    ),
    "subclassed": around(lambda x, inner: x * inner(x)),
    "dropout": lambda x: L.Dropout(0.5)(x),
}
# What does not, or not as the trial could see.
MIXED = {
    "rows": around(
        lambda x, inner: ops.reshape(
            inner(ops.reshape(x, (-1, WIDTH))), ops.shape(x)
        )
    ),
    "time first": around(
        lambda x, inner: ops.swapaxes(inner(ops.swapaxes(x, 0, 1)), 0, 1)
    ),
    "turned": around(banks.turned),
    "halves changed": around(halves_changed),
    "rolled": around(
        lambda x, inner: ops.roll(inner(ops.roll(x, 1, axis=0)), -1, axis=0)
    ),
    "sorted": around(
        lambda x, inner: ops.take(
            inner(ops.take(x, _order(x), axis=0)),
            ops.argsort(_order(x)),
            axis=0,
        )
    ),
    "repeated": around(lambda x, inner: inner(ops.repeat(x, 2, axis=0))[::2]),
    "gathered": around(
        lambda x, inner: ops.concatenate([inner(x[:1]), inner(x[1:])])
    ),
    "averaged": around(
        lambda x, inner: inner(x) + ops.mean(inner(x), axis=0, keepdims=True)
    ),
    "centred": lambda x: x - ops.mean(x, axis=0, keepdims=True),
    "recorded": around(recorded),
    "scaled": lambda x: Scaled(lambda x, inner: inner(x))(x),
}
if BACKEND != "tensorflow":
    # Keras's `vectorized_map` takes no layer there.
    MIXED["one by one"] = around(lambda x, inner: ops.vectorized_map(inner, x))
# Those whose layer an error need not name.
UNNAMED = ("averaged", "centred", "recorded", "scaled")


def _order(x):
    return ops.argsort(ops.sum(x, axis=(1, 2)))


class Reading(L.Layer):
    """A head whose kernel is read, and which is never called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(3, use_bias=False, name="inner")
        self.inner.build((None, WIDTH))

    def call(self, x):
        return ops.matmul(x, ops.normalize(self.inner.kernel, axis=0))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


HEADS = {
    "dense": lambda: L.Dense(3),
    "einsum": lambda: L.EinsumDense("btd,df->btf", (None, 3), bias_axes="f"),
    "norm": L.LayerNormalization,
    "rms": L.RMSNormalization,
    "attention": lambda: L.MultiHeadAttention(2, 2),
}
REFUSED_HEADS = {
    "reading": Reading,
    "convolution": lambda: L.Conv1D(3, 2, padding="same"),
    "lstm": lambda: L.LSTM(3, return_sequences=True),
    "bidirectional": lambda: L.Bidirectional(L.GRU(3, return_sequences=True)),
    "prelu": L.PReLU,
    "batch norm": L.BatchNormalization,
}


def build(architecture):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((architecture["length"], WIDTH))
    x = dense()(inputs)
    for step in architecture["steps"]:
        x = (APART | MIXED)[step](x)
    head = (HEADS | REFUSED_HEADS)[architecture["head"]]()
    head.name = "head"
    y = head(x, x) if isinstance(head, L.MultiHeadAttention) else head(x)
    outputs = {"y": y}
    if architecture["several outputs"]:
        outputs |= {
            "pooled": ops.max(y, axis=1),
            "class": ops.argmax(y, axis=-1),
        }
    model = keras.Model(inputs, outputs)
    keras_ether.apply(
        model,
        rank_blocks=1,
        method=architecture["method"],
        targets="all-linear",
        trainable=["head"],
        seed=0,
    )
    for layer in model.layers:
        if isinstance(layer, Scaled):
            layer.scale.trainable = True
    return model


def values(variables, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=v.shape).astype("float32") for v in variables]


def answers(outputs):
    return {name: models.values([y])[0] for name, y in outputs.items()}


def refusal(architecture):
    """Why a model is refused, `None` if all its answers are right."""
    model = build(architecture)
    trained = model.trainable_variables
    start = models.values(trained)
    head = set(vars(model.get_layer("head")))
    mixes = architecture["head"] in REFUSED_HEADS or any(
        step in MIXED for step in architecture["steps"]
    )
    try:
        with banks.unchanged(*model.variables):
            bank = keras_ether.AdapterBank(model, 3)
    except ValueError as error:
        COUNTS["refused"] += 1
        assert mixes, f"{architecture} is refused: {error}"
        assert set(vars(model.get_layer("head"))) == head
        return str(error)
    given = {f"a{i}": values(trained, i) for i in range(2)}
    for name, own in given.items():
        for variable, value in zip(trained, own, strict=True):
            variable.assign(value)
        bank.add(name, model)
    rng = np.random.default_rng(architecture["seed"])
    for size in (FIVE, 8):
        shape = (size, architecture["length"], WIDTH)
        x = rng.standard_normal(shape).astype("float32")
        alone = {}
        for name, own in [(None, start), *given.items()]:
            for variable, value in zip(trained, own, strict=True):
                variable.assign(value)
            if name is None:
                with keras_ether.disabled(model):
                    alone[name] = answers(model(x, training=False))
            else:
                alone[name] = answers(model(x, training=False))
        names = [(None, "a0", "a1")[i] for i in rng.integers(3, size=size)]
        with bank.using(names) as ids:
            found = answers(bank.model(banks.with_ids(x, ids)))
        for part, y in found.items():
            for i, name in enumerate(names):
                np.testing.assert_allclose(
                    y[i],
                    alone[name][part][i],
                    atol=2e-4,
                    rtol=2e-3,
                    err_msg=f"{architecture}: {part} of example {i}, {name}",
                )
    bank.close()
    COUNTS["right"] += 1
    return None


ARCHITECTURES = st.fixed_dictionaries(
    {
        # Most are to keep examples apart, or few would be served.
        "steps": st.lists(
            st.sampled_from(sorted(APART) * 5 + sorted(MIXED)),
            min_size=1,
            max_size=4,
        ),
        "head": st.sampled_from(sorted(HEADS) * 8 + sorted(REFUSED_HEADS)),
        "length": st.sampled_from([FIVE, SEVEN, 6, 8]),
        "method": st.sampled_from(["ether", "ether+"]),
        "several outputs": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def fuzz(examples):
    @hypothesis.given(ARCHITECTURES)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        suppress_health_check=list(hypothesis.HealthCheck),
        database=None,
    )
    def run(architecture):
        refusal(architecture)

    run()


PLAIN = {
    "length": FIVE,
    "head": "dense",
    "method": "ether+",
    "several outputs": False,
    "seed": 0,
}


@pytest.mark.by_turns
@pytest.mark.parametrize("step", sorted(APART))
def test_what_keeps_examples_apart_is_served(step):
    assert refusal(PLAIN | {"steps": [step, "dense"]}) is None


@pytest.mark.parametrize("length", [FIVE, SEVEN, 6])
@pytest.mark.parametrize("step", sorted(MIXED))
def test_what_mixes_them_is_refused(step, length):
    error = refusal(PLAIN | {"steps": ["dense", step], "length": length})
    assert error
    assert "inner'" in error or step in UNNAMED


@pytest.mark.once
def test_dozens_of_architectures():
    fuzz(40)


@pytest.mark.nightly
def test_hundreds_of_architectures():
    COUNTS.clear()
    fuzz(500 if BACKEND == "torch" else 60)
    print(dict(COUNTS))
    assert COUNTS["refused"] and COUNTS["right"]
