"""Heads: what each example can have for itself, and what is refused."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import models
from tests import tuned
from tests.bank import banks

L = keras.layers
NAMES = ["a0", "a1", None, "a1", "a0", None, "a1", "a0"]
pytestmark = pytest.mark.filterwarnings("ignore:.*last linear layer")

SERVED = {
    "dense": lambda: L.Dense(4, activation="tanh"),
    "einsum": lambda: L.EinsumDense(
        "btd,dnh->btnh", (None, 2, 3), bias_axes="nh", activation="relu"
    ),
    "einsum of one axis": lambda: L.EinsumDense(
        "...d,df->...f", 3, bias_axes="f"
    ),
    "einsum without bias": lambda: L.EinsumDense("btd,df->bft", (5, 6)),
    "norm": L.LayerNormalization,
    "norm over two axes": lambda: L.LayerNormalization(axis=(1, 2)),
    "norm without a shift": lambda: L.LayerNormalization(center=False),
    "rms": L.RMSNormalization,
    "attention": lambda: L.MultiHeadAttention(2, 4),
}
REFUSED = {
    "conv": lambda: L.Conv1D(4, 2),
    "lstm": lambda: L.LSTM(4),
    "gru": lambda: L.GRU(4),
    "bidirectional": lambda: L.Bidirectional(L.LSTM(4)),
    "batch norm": L.BatchNormalization,
    "prelu": L.PReLU,
    "own dense": lambda: type("OwnDense", (L.Dense,), {})(4),
}


def model_of(make, seed):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    x = L.Dense(8, name="body")(inputs)
    head = make()
    head.name = "head"
    inner = (x, x) if isinstance(head, L.MultiHeadAttention) else (x,)
    model = keras.Model(inputs, head(*inner))
    keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"], seed=0
    )
    tuned.move(model.trainable_weights, seed)
    return model


@pytest.mark.parametrize("kind", SERVED)
def test_every_example_has_its_own(kind, rng):
    make = SERVED[kind]
    alone = [model_of(make, 0), model_of(make, 1)]
    bank = keras_ether.AdapterBank(model_of(make, 2), 2)
    for i, model in enumerate(alone):
        bank.add(f"a{i}", model)
    base = keras_ether.remove(model_of(make, 2))
    x = rng.standard_normal((8, 6, 8)).astype("float32")
    expected = banks.expected(
        NAMES, alone, base, lambda model: models.call(model, x)
    )
    found = banks.call(bank, x, NAMES)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    is_base = [name is None for name in NAMES]
    np.testing.assert_array_equal(found[is_base], expected[is_base])


@pytest.mark.parametrize("kind", REFUSED)
def test_other_layers_are_refused(kind):
    model = model_of(REFUSED[kind], 0)
    with pytest.raises(ValueError, match=r"own weights.*'head.*Set its `trai"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_weights_around_adapted_layers_are_refused():
    class Scaled(L.Layer):
        def build(self, shape):
            self.inner = L.Dense(8, name="inner")
            self.inner.build(shape)
            self.gamma = self.add_weight(shape=(8,), name="gamma")
            self.built = True

        def call(self, x):
            return x + self.gamma * self.inner(x)

    inputs = keras.Input((6, 8))
    outputs = L.Dense(3, name="head")(Scaled(name="scaled")(inputs))
    model = keras.Model(inputs, outputs)
    keras_ether.apply(
        model, rank_blocks=2, targets=["inner"], trainable=["head"]
    )
    keras_ether.AdapterBank(model, 2)
    model.get_layer("scaled").gamma.trainable = True
    with pytest.raises(ValueError, match=r"\['gamma'\] of layer 'scaled'"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_a_bias_that_trains_beside_an_adapter_is_refused():
    model = tuned.adapted("mlp")
    model.get_layer("first").bias.trainable = True
    with pytest.raises(ValueError, match=r"\['bias'\] of layer 'first'"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_a_part_of_a_layer_that_trains_is_refused():
    model = model_of(L.LayerNormalization, 0)
    model.get_layer("head").gamma.trainable = False
    with pytest.raises(ValueError, match="'gamma' does not train"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_a_quantized_head_is_refused():
    model = model_of(lambda: L.Dense(4), 0)
    model.get_layer("head").quantize("int8")
    with pytest.raises(ValueError, match="quantized"):
        keras_ether.AdapterBank(model, 2)


class Reading(keras.Model):
    """A classifier by cosines, which reads its head's kernel."""

    def __init__(self):
        super().__init__()
        self.body = L.Dense(8, activation="tanh", name="body")
        self.body.build((None, 6, 8))
        self.head = L.Dense(4, use_bias=False, name="head")
        self.head.build((None, 8))
        self.built = True

    def call(self, x):
        h = ops.normalize(ops.mean(self.body(x), 1))
        return ops.matmul(h, ops.normalize(self.head.kernel, axis=0))


def test_a_head_that_is_read_and_not_called_is_refused(rng):
    model = Reading()
    keras_ether.apply(
        model, rank_blocks=2, targets=["body"], trainable=["head"]
    )
    x = rng.standard_normal((1, 6, 8)).astype("float32")
    with pytest.raises(ValueError, match="did not call layer 'head'"):
        keras_ether.AdapterBank(model, 2, trial=x)
