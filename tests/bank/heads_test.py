"""Heads: what each example can have for itself, and what is refused."""

import keras
import pytest
from keras import ops

import keras_ether
from tests import tuned
from tests.bank import banks

L = keras.layers
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
    head = make()
    head.name = "head"
    is_attention = isinstance(head, L.MultiHeadAttention)
    return banks.chain(
        (6, 8),
        L.Dense(8, name="body"),
        lambda x: head(x, x) if is_attention else head(x),
        seed=seed,
        targets=["body"],
    )


@pytest.mark.parametrize("kind", SERVED)
def test_every_example_has_its_own(kind, rng):
    def make(seed):
        return model_of(SERVED[kind], seed)

    bank, alone = banks.of(make)
    x = rng.standard_normal((8, 6, 8)).astype("float32")
    banks.check_calls(bank, alone, banks.base_of(make), x)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_layers_are_refused(kind):
    model = model_of(REFUSED[kind], 0)
    with pytest.raises(ValueError, match=r"own weights.*'head.*Set its `trai"):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.once
def test_weights_around_adapted_layers_are_refused():
    class Scaled(banks.Around):
        def build(self, shape):
            super().build(shape)
            self.gamma = self.add_weight(shape=(8,), name="gamma")

    scaled = Scaled(lambda x, inner: inner(x), name="scaled")
    model = banks.chain((6, 8), scaled, L.Dense(3, name="head"))
    keras_ether.AdapterBank(model, 2)
    scaled.gamma.trainable = True
    with pytest.raises(ValueError, match=r"\['gamma'\] of layer 'scaled'"):
        keras_ether.AdapterBank(model, 2)


def bias_beside_an_adapter():
    model = tuned.adapted("mlp")
    model.get_layer("first").bias.trainable = True
    return model


def part_of_a_layer():
    model = model_of(L.LayerNormalization, 0)
    model.get_layer("head").gamma.trainable = False
    return model


def quantized():
    model = model_of(lambda: L.Dense(4), 0)
    model.get_layer("head").quantize("int8")
    return model


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bias_beside_an_adapter, r"\['bias'\] of layer 'first'"),
        (part_of_a_layer, "'gamma' does not train"),
        (quantized, "quantized"),
    ],
)
def test_weights_without_a_product_are_refused(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
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
