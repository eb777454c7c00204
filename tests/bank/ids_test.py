"""An id names one adapter for ever; what is no id is refused, or marked."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import backends
from tests import models
from tests.bank import banks

BACKEND = keras.backend.backend()
WRONG = {
    "never given": [1, 2, 0, 3],
    "negative": [1, 2, 0, -1],
    "another turn of a row": [1, 2, 0, 6],
    "int64": np.array([2**32 + 1, 2**32, -(2**32) + 2, 2**33]),
    "uint64": np.array([2**63 + 1, 1, 2, 0], "uint64"),
    "uint32": np.array([2**32 - 1, 1, 2, 0], "uint32"),
    "uint8": np.array([255, 1, 2, 0], "uint8"),
    "floats": np.array([1.9, 0.5, -0.5, 2.0], "float32"),
    "whole floats": np.array([1.0, 0.0, 2.0, 1.0]),
    "nan": np.array([np.nan, np.inf, 1.0, 0.0], "float32"),
    "booleans": np.array([True, False, True, False]),
    "strings": np.array(["a0", "a1", "a0", "a0"]),
    "objects": np.array([1, 2, 0, 1], object),
    "a scalar": np.int32(1),
    "a column": np.array([[1], [2], [0], [1]], "int32"),
    "one for all": [1],
    "as many as divide": [1, 2],
    "too many": [1, 2, 0, 1, 1, 1, 1, 1],
    "none": np.zeros((0,), "int32"),
}


@pytest.fixture(scope="module")
def bank():
    bank, _ = banks.bank_of()
    bank.model.compile("sgd", "mse")
    return bank


@pytest.fixture(scope="module")
def x():
    return models.inputs_of("mlp", np.random.default_rng(0), samples=4)


@pytest.mark.parametrize("ids", WRONG.values(), ids=WRONG)
def test_what_is_no_id_is_refused_at_every_edge(ids, bank, x):
    batch, y = banks.with_ids(x, ids), np.zeros((4, 4), "float32")
    good = banks.with_ids(x, bank.ids(["a0", "a1", None, "a1"]))
    uses = (
        lambda: bank.model(batch),
        lambda: bank.model.predict(batch, verbose=0),
        lambda: bank.model.predict_on_batch(batch),
        lambda: bank.model.evaluate(batch, y, verbose=0),
        lambda: bank.model.test_on_batch(batch, y),
        lambda: bank.model.fit(batch, y, verbose=0),
        lambda: bank.model.train_on_batch(batch, y),
        lambda: bank.model.fit(good, y, validation_data=(batch, y), verbose=0),
        lambda: bank.model.predict(generator([(batch,)]), verbose=0),
    )
    with banks.unchanged(*bank.model.variables):
        for use in uses:
            with pytest.raises(ValueError, match="adapter_id"):
                use()


def test_a_tensor_of_16_bits(bank, x):
    ids = ops.cast(ops.convert_to_tensor([1, 2, 0, 257]), "bfloat16")
    with pytest.raises(ValueError, match="integers"):
        bank.model(banks.with_ids(x, ids))


@pytest.mark.parametrize(
    "ids",
    [[1, 2, 0, 1], np.array([1, 2, 0, 1]), np.array([1, 2, 0, 1], "uint8")],
    ids=["list", "int64", "uint8"],
)
def test_integers_of_other_kinds_are_ids(ids, bank, x):
    names = ["a0", "a1", None, "a0"]
    np.testing.assert_array_equal(
        models.call(bank.model, banks.with_ids(x, ids)),
        banks.call(bank, x, names),
    )


def test_no_example_at_all(bank, x):
    batch = banks.with_ids(x[:0], np.zeros((0,), "int32"))
    assert models.call(bank.model, batch).shape == (0, 4)
    assert bank.model.predict_on_batch(batch).shape == (0, 4)
    assert bank.predict(x[:0], [], batch_size=2).shape == (0, 4)
    with pytest.raises(ValueError, match="one id for each example"):
        bank.predict(x, [])


def test_an_id_that_ended_names_nobody_else(x):
    bank, alone = banks.bank_of(capacity=2)
    old = bank.ids(["a0", "a1", None, "a1"])
    bank.add("b", alone[1], evict=True)
    bank.remove("a1")
    bank.add("c", alone[0])
    assert not set(bank.ids(["b", "c"])) & set(old)
    for ids in (old, old[[0, 0, 2, 2]], old[[1, 1, 2, 2]]):
        with pytest.raises(ValueError, match="An id ends"):
            models.call(bank.model, banks.with_ids(x, ids))
    # A replacement is the same adapter to its callers.
    kept = bank.ids(["b"] * 4)
    bank.add("b", alone[0])
    np.testing.assert_array_equal(kept, bank.ids(["b"] * 4))


@pytest.mark.once
def test_names_of_the_caller_may_change_while_in_use(x):
    bank, _ = banks.bank_of(capacity=2)
    names = ["a0"]
    with bank.using(["a1"]):
        with bank.using(names):
            names[0] = "a1"
        with pytest.raises(ValueError, match="in use"):
            bank.remove("a1")
    with bank.using(name for name in ("a0", "a1")) as ids:
        assert len(ids) == 2
    bank.add("b", evict=True)
    for wrong in (b"a0a0", "a0", [["a1"]] * 4, [1] * 4):
        with pytest.raises(ValueError, match="must be a list of names"):
            bank.predict(x, wrong)


@pytest.mark.once
def test_ids_that_are_used_up(monkeypatch):
    bank, alone = banks.bank_of(capacity=2)
    monkeypatch.setattr(keras_ether.bank.rows, "LARGEST", 7)
    bank.remove("a0")
    assert bank.add("a0", alone[0]) == 4
    bank.remove("a0")
    assert bank.add("a0", alone[0]) == 7
    bank.remove("a0")
    with pytest.raises(ValueError, match="have been used"):
        bank.add("a0", alone[0])
    assert bank.names == ["a1"]


def many_outputs():
    """Where NaN gets lost: integers, maxima, conditions."""
    return banks.chain(
        (6, 8),
        keras.layers.Dense(8),
        keras.layers.Dense(3, name="head"),
        lambda y: {
            "class": ops.argmax(y, axis=-1),
            "one hot": ops.one_hot(ops.argmax(y, axis=-1), 3),
            "known": ops.nan_to_num(y),
            "positive": ops.where(y > 0, 1.0, 0.0),
            "largest": ops.max(y, axis=(1, 2)),
            "half": ops.cast(y, "float16"),
        },
        seed=3,
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(
            backends.compile_function,
            # PyTorch's takes two minutes.
            marks=pytest.mark.nightly if BACKEND == "torch" else [],
        )
    ],
)
def test_in_compiled_code_outputs_are_marked(compiler, rng):
    """By NaN or the lowest integer, whatever the model makes of NaN."""
    bank = keras_ether.AdapterBank(many_outputs(), 3)
    bank.add("a")
    bank.add("gone")
    x = rng.standard_normal((5, 6, 8)).astype("float32")
    ids = np.append(bank.ids(["a", None, "gone"]), [-1, 9]).astype("int32")
    run = compiler(lambda x, ids: bank.model(banks.with_ids(x, ids)))
    bank.remove("gone")
    found = run(ops.convert_to_tensor(x), ops.convert_to_tensor(ids))
    expected = bank.model(banks.with_ids(x[:2], bank.ids(["a", None])))
    for name, y in found.items():
        y = models.values([y])[0]
        right = models.values([expected[name]])[0]
        np.testing.assert_allclose(y[:2], right, atol=2e-3, err_msg=name)
        if np.issubdtype(y.dtype, np.integer):
            assert (y[2:] == np.iinfo(y.dtype).min).all(), name
        else:
            assert np.isnan(y[2:]).all(), name


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others know all sizes")
def test_the_number_of_ids_in_a_graph_of_any_size(bank, x):
    import tensorflow as tf

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 16), "float32"),
            tf.TensorSpec((None,), "int32"),
        ]
    )
    def run(x, ids):
        return bank.model(banks.with_ids(x, ids))

    assert run(x, bank.ids(["a0"] * 4)).shape == (4, 4)
    for wrong in (["a0"], ["a0", "a1"], ["a0"] * 3, ["a1"] * 8):
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(x, bank.ids(wrong))


def generator(batches):
    yield from batches


def pipeline(batches):
    import tensorflow as tf

    whole = keras.tree.map_structure(lambda *parts: np.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(whole)


def loader(batches):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(batches, collate_fn=lambda one: one[0])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", [banks.Batches, generator, pipeline, loader])
def test_every_kind_of_data_is_looked_at(kind, bank, x):
    if kind is loader and BACKEND != "torch":
        pytest.skip("a kind of PyTorch")
    names = ["a0", "a1", None, "a1"]
    good = banks.with_ids(x, bank.ids(names))
    bad = banks.with_ids(x, np.array([1, 2, 0, 9], "int32"))
    y = np.zeros((4, 4), "float32")
    np.testing.assert_allclose(
        bank.model.predict(kind([(good,), (good,)]), verbose=0),
        np.concatenate([banks.call(bank, x, names)] * 2),
        atol=1e-5,
    )
    data = [(good, y), (bad, y)]
    for use in (
        lambda: bank.model.predict(kind([(good,), (bad,)]), verbose=0),
        lambda: bank.model.evaluate(kind(data), verbose=0),
        lambda: bank.model.fit(kind(data), shuffle=False, verbose=0),
    ):
        with pytest.raises(ValueError, match=r"Received: \[9\]"):
            use()


@pytest.mark.once
def test_one_name_is_no_list_of_names(bank):
    with pytest.raises(ValueError, match="list of names"):
        bank.ids("a0")
