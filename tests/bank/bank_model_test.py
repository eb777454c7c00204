"""Every example gets its own adapter's answer, whatever the layers."""

import copy
import itertools

import h5py
import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import backends
from tests import kinds
from tests import models
from tests import tuned
from tests.bank import banks

L = keras.layers
NAMES = banks.NAMES


QUICK = [("mlp", "ether"), ("functional", "ether+")]


@pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.nightly)
        for case in itertools.product(models.ALL, ["ether", "ether+"])
    ],
)
def test_answers_are_those_of_each_adapter_alone(name, method, rng):
    bank, alone = banks.bank_of(name, method)
    x = models.inputs_of(name, rng)
    before = models.call(bank.model.base, x)
    banks.check_calls(bank, alone, banks.plain(name, method), x, atol=3e-5)
    # The model passed is as it was.
    np.testing.assert_array_equal(models.call(bank.model.base, x), before)


def test_predict_and_evaluate(rng, monkeypatch):
    backends.compile_models_as_users_do(monkeypatch)
    bank, alone = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    base = banks.plain("mlp")
    batch = banks.with_ids(x, bank.ids(NAMES))
    expected = banks.expected(
        NAMES, alone, base, lambda m: m.predict(x, batch_size=3, verbose=0)
    )
    found = bank.model.predict(batch, batch_size=3, verbose=0)
    banks.check(found, expected, NAMES)
    bank.model.compile(loss="mse")
    loss = bank.model.evaluate(batch, expected, verbose=0)
    assert loss < 1e-8


@pytest.mark.by_turns
@pytest.mark.parametrize(("kind", "method"), kinds.sweep("ether", "ether+"))
def test_every_kind_of_layer(kind, method, rng):
    def make(seed):
        model = kinds.model_of(kind)
        keras_ether.apply(
            model,
            targets=["target"],
            method=method,
            rank_blocks=2,
            trainable=["head"],
        )
        tuned.move(model.trainable_weights, seed)
        return model

    bank, alone = banks.of(make)
    x = kinds.inputs_of(kind, rng, samples=8)
    banks.check_calls(bank, alone, banks.base_of(make), x)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*the last linear layer")
def test_more_blocks_than_fit_one_matrix(rng):
    def make(seed):
        model = banks.chain(
            (5, 40),
            L.Dense(80, name="wide"),
            rank_blocks=20,
            method="ether+",
            trainable=None,
        )
        model.get_layer("wide").base_kernel.assign(
            np.random.default_rng(0).standard_normal((40, 80))
        )
        tuned.move(model.trainable_weights, seed)
        return model

    bank, alone = banks.of(make)
    x = rng.standard_normal((8, 5, 40)).astype("float32")
    banks.check_calls(bank, alone, banks.base_of(make), x, atol=1e-4)


@pytest.mark.by_turns
@pytest.mark.parametrize("method", ["ether", "ether+"])
def test_wide_inputs_of_many_rows(method, rng):
    """Their factors act beside the product, and `None` is still the base."""

    def make(seed):
        return banks.chain(
            (32, 12),
            L.Dense(6, activation="gelu"),
            L.EinsumDense("abc,cde->abde", (None, 2, 3)),
            L.EinsumDense("abde,dec->abc", (None, 4)),
            L.Dense(2, name="head"),
            seed=seed,
            method=method,
            targets="all",
        )

    bank, alone = banks.of(make)
    x = rng.standard_normal((len(NAMES), 32, 12)).astype("float32")
    expected = banks.expected(
        NAMES,
        alone,
        banks.base_of(make),
        lambda model: model.predict(x, verbose=0),
    )
    found = bank.predict(x, NAMES)
    banks.check(found, expected, NAMES)
    np.testing.assert_allclose(banks.call(bank, x, NAMES), found, atol=1e-5)


@pytest.mark.parametrize(
    "dtype",
    [
        "mixed_bfloat16",
        pytest.param("bfloat16", marks=pytest.mark.nightly),
        pytest.param("mixed_float16", marks=pytest.mark.nightly),
    ],
)
def test_dtype_policies(dtype, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        bank, alone = banks.bank_of("functional", "ether+")
        base = banks.plain("functional", "ether+")
    finally:
        keras.config.set_dtype_policy(before)
    x = models.inputs_of("functional", rng)

    def answer(model):
        y = model(x, training=False)
        return np.array(ops.convert_to_numpy(ops.cast(y, "float32")))

    expected = banks.expected(NAMES, alone, base, answer)
    y = bank.model(banks.with_ids(x, bank.ids(NAMES)))
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix(
        "mixed_"
    )
    found = np.array(ops.convert_to_numpy(ops.cast(y, "float32")))
    banks.check(found, expected, NAMES, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "mode", ["int8", pytest.param("int4", marks=pytest.mark.nightly)]
)
def test_quantized_bases(mode, rng):
    def make(seed):
        model = tuned.base("mlp")
        body = keras.Model(
            model.inputs[0], model.get_layer("second").output, name="body"
        )
        for layer in body.layers:
            if hasattr(layer, "kernel"):
                layer.quantize(mode)
        outputs = L.Dense(4, name="head", kernel_initializer="ones")(
            body.outputs[0]
        )
        model = keras.Model(model.inputs[0], outputs)
        keras_ether.apply(model, rank_blocks=2, trainable=["head"])
        tuned.move(model.trainable_weights, seed)
        return model

    bank, alone = banks.of(make)
    x = models.inputs_of("mlp", rng)
    wanted = banks.expected(
        NAMES, alone, banks.base_of(make), lambda m: models.call(m, x)
    )
    np.testing.assert_allclose(banks.call(bank, x, NAMES), wanted, atol=0.05)


def test_nothing_is_traced_again(rng):
    """By adding, replacing, removing, and other adapters in the batch."""
    traces = []

    class Counted(L.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    model = banks.chain((16,), L.Dense(8), Counted(), L.Dense(3, name="head"))
    bank = keras_ether.AdapterBank(model, 3)
    data = models.inputs_of("mlp", rng, samples=4)

    def predict(*names):
        return bank.predict(data, names)

    first = predict(None, None, None, None)
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs the model as it is")
    del traces[:]
    bank.add("a")
    bank.add("b")
    predict("a", "b", None, "a")
    bank.add("a")
    bank.remove("b")
    bank.add("c")
    predict("a", "c", "c", "c")
    np.testing.assert_array_equal(predict(None, None, None, None), first)
    assert not traces


def test_stateless_call_uses_the_values_it_is_given(rng):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    first, second = bank.ids(["a0", "a1"])
    swap = np.arange(bank.capacity + 1)
    swap[[first, second]] = second, first
    swapped = [
        keras.ops.convert_to_tensor(models.values([v])[0][swap])
        for v in bank.model.trainable_variables
    ]
    others = [keras.ops.copy(v) for v in bank.model.non_trainable_variables]
    inputs = banks.with_ids(x, np.full(len(x), first, "int32"))
    found, _ = bank.model.stateless_call(swapped, others, inputs)
    np.testing.assert_allclose(
        models.values([found])[0],
        banks.call(bank, x, ["a1"] * len(x)),
        atol=1e-6,
    )


def head():
    return L.Dense(2, name="head")


def float8():
    first = L.Dense(4, name="first")
    first.build((None, 8))
    first.quantize("float8")
    return banks.chain((8,), first, head())


def whole_blocks(method):
    return lambda: banks.chain((16,), L.Dense(8), head(), method=method)


def turned():
    turned = L.EinsumDense("btd,df->tbf", (None, 4), name="turned")
    return banks.chain((6, 8), turned, head())


def kernel_read_from_outside():
    dense = L.Dense(4, name="read")
    read = L.Lambda(lambda x: ops.matmul(x, ops.transpose(dense.kernel)))
    return banks.chain((6, 8), dense, read, head())


def input_named_as_ids():
    inputs = {n: keras.Input((8,), name=n) for n in ("inputs", "adapter_id")}
    x = L.Dense(8, name="body")(inputs["inputs"])
    model = keras.Model(inputs, head()(x + inputs["adapter_id"]))
    return keras_ether.apply(model, rank_blocks=2, trainable=["head"])


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (whole_blocks("oft"), "not reflections"),
        (whole_blocks("naive"), "not reflections"),
        (float8, "float8 kernel is folded"),
        (turned, "'turned'.*batch is not the first"),
        (kernel_read_from_outside, "The `kernel` of layer '.*read' was read"),
        (input_named_as_ids, "input 'adapter_id', but"),
    ],
)
def test_models_that_no_bank_can_be_made_of(make, message):
    model = make()
    with (
        banks.unchanged(*model.variables),
        pytest.raises(ValueError, match=message),
    ):
        keras_ether.AdapterBank(model, 2)


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="it has no sparse inputs"
)
def test_sparse_inputs_are_refused_at_a_call():
    inputs = keras.Input((8,), sparse=True)
    outputs = head()(L.Dense(4, name="first")(inputs))
    model = keras.Model(inputs, outputs)
    keras_ether.apply(model, trainable=["head"])
    bank = keras_ether.AdapterBank(model, 2)
    x = np.eye(2, 8, dtype="float32")
    if keras.backend.backend() == "jax":
        from jax.experimental import sparse

        x = sparse.BCOO.fromdense(x)
    else:
        import tensorflow as tf

        x = tf.sparse.from_dense(x)
    with pytest.raises(ValueError, match=r"'.*first' received sparse inputs"):
        bank.model(banks.with_ids(x, bank.ids([None, None])))


@pytest.mark.once
def test_inputs_without_ids_are_refused(rng):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    for wrong in (x, {"inputs": x}):
        with pytest.raises(ValueError, match="adapter_id"):
            bank.model(wrong)


@pytest.mark.once
def test_whole_banks_are_neither_saved_nor_copied(tmp_path):
    bank, _ = banks.bank_of()
    with pytest.raises(ValueError, match=r"bank\.save"):
        bank.model.save(tmp_path / "bank.keras")
    with pytest.raises(ValueError, match="can't be"):
        copy.deepcopy(bank.model)
    with pytest.raises(ValueError, match="can't be quantized"):
        bank.model.quantize("int8")


def test_weights_travel_with_names(rng, tmp_path):
    bank, alone = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    expected = banks.call(bank, x, NAMES)
    file = tmp_path / "bank.weights.h5"
    bank.model.save_weights(file)
    other = keras_ether.AdapterBank(tuned.adapted("mlp", seed=9), 4)
    for name in ("a1", "b", "a0"):
        other.add(name, alone[0])
    before = other.ids(["a1", "a0"] * 4)
    other.model.load_weights(file)
    assert other.names == ["a0", "a1"]
    np.testing.assert_allclose(banks.call(other, x, NAMES), expected, atol=1e-5)
    with pytest.raises(ValueError, match="An id ends"):
        models.call(other.model, banks.with_ids(x, before))
    other.save("a1", tmp_path / "a1.safetensors")


@pytest.mark.once
def test_weights_without_names_are_refused(rng, tmp_path):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    expected = banks.call(bank, x, NAMES)
    larger, _ = banks.bank_of(capacity=5)
    larger.model.save_weights(tmp_path / "larger.weights.h5")
    with pytest.raises(ValueError, match="could not be loaded"):
        bank.model.load_weights(tmp_path / "larger.weights.h5")
    np.testing.assert_array_equal(banks.call(bank, x, NAMES), expected)
    weights = bank.model.get_weights()
    bank.model.set_weights(weights)
    np.testing.assert_array_equal(banks.call(bank, x, NAMES), expected)
    same, _ = banks.bank_of()
    with pytest.raises(ValueError, match="do not belong to the adapters"):
        same.model.set_weights(weights)
    bank.remove("a0")
    with pytest.raises(ValueError, match="do not belong to the adapters"):
        bank.model.set_weights(weights)


def bank_over(*targets):
    """A bank of a model of two equal layers, and an adapter of them."""

    def make(seed):
        return banks.chain(
            (16,),
            keras.layers.Dense(16, name="d1"),
            keras.layers.Dense(16, name="d2"),
            keras.layers.Dense(4, name="head"),
            seed=seed,
            targets=list(targets),
        )

    return banks.of(make)


@pytest.mark.once
@pytest.mark.parametrize("is_old", [False, True])
def test_weights_of_other_layers_are_refused(is_old, rng, tmp_path):
    """Of equal shapes, which Keras stores by position."""
    bank, _ = bank_over("d2")
    x = rng.normal(size=(8, 16)).astype("float32")
    expected = banks.call(bank, x, NAMES)
    other, _ = bank_over("d1")
    file = tmp_path / "other.weights.h5"
    other.model.save_weights(file)
    if is_old:
        with h5py.File(file, "r+") as opened:
            del opened["vars"]["stacks"]
    with pytest.raises(ValueError, match=r"d1(.|\n)*d2|d2(.|\n)*d1"):
        bank.model.load_weights(file)
    np.testing.assert_array_equal(banks.call(bank, x, NAMES), expected)
    wanted = banks.call(other, x, NAMES)
    again, _ = bank_over("d1")
    again.model.load_weights(file)
    np.testing.assert_allclose(banks.call(again, x, NAMES), wanted, atol=1e-6)


@pytest.mark.once
def test_names_are_not_loaded_without_values(rng, tmp_path):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    expected = banks.call(bank, x, NAMES)
    larger, _ = banks.bank_of(adapters=3, capacity=5)
    larger.model.save_weights(tmp_path / "larger.weights.h5")
    for skip in (
        {"skip_mismatch": True},
        {"objects_to_skip": bank.model.stacks},
    ):
        with pytest.raises(ValueError, match="all names and values"):
            bank.model.load_weights(tmp_path / "larger.weights.h5", **skip)
    assert bank.names == ["a0", "a1"]
    np.testing.assert_array_equal(banks.call(bank, x, NAMES), expected)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("how", ["a file", "lists"])
def test_weights_that_come_past_the_names_answer_nobody(how, rng, tmp_path):
    """By a model around the bank's, which knows no names."""
    bank, alone = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    expected = banks.call(bank, x, NAMES)
    banks.outer(bank).save_weights(tmp_path / "outer.weights.h5")
    # The same adapters in the same rows.
    banks.outer(bank).load_weights(tmp_path / "outer.weights.h5")
    np.testing.assert_array_equal(banks.call(bank, x, NAMES), expected)
    other, _ = banks.bank_of(adapters=0)
    for i in (1, 0):
        other.add(f"a{i}", alone[i])
    bank.model.save_weights(tmp_path / "bank.weights.h5")
    if how == "lists":
        banks.outer(other).set_weights(banks.outer(bank).get_weights())
    else:
        with pytest.raises(ValueError, match="other adapters"):
            banks.outer(other).load_weights(tmp_path / "outer.weights.h5")
    ids = other.ids(NAMES)
    for use in (
        lambda: other.predict(x, NAMES),
        lambda: models.call(other.model, banks.with_ids(x, ids)),
        lambda: other.model.predict_on_batch(banks.with_ids(x, ids)),
        lambda: other.add("b"),
    ):
        with pytest.raises(ValueError, match="without their names"):
            use()
    other.model.load_weights(tmp_path / "bank.weights.h5")
    np.testing.assert_allclose(banks.call(other, x, NAMES), expected, atol=1e-5)


def test_weights_of_before_a_replacement_do_not_come_back(rng):
    """As `EarlyStopping(restore_best_weights=True)` would bring them."""
    bank, alone = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    weights = bank.model.get_weights()
    bank.add("a0", alone[1])
    with pytest.raises(ValueError, match="do not belong to the adapters"):
        bank.model.set_weights(weights)
    np.testing.assert_allclose(
        banks.call(bank, x, ["a0"] * 8), models.call(alone[1], x), atol=1e-5
    )


def test_what_the_model_acts_by_does_not_reach_in(rng):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    batch = banks.with_ids(x, bank.ids(NAMES))
    expected = bank.model.predict(batch, verbose=0)
    keras_ether.strength(bank.model.base, 0.5)
    np.testing.assert_array_equal(
        bank.model.predict(batch, verbose=0), expected
    )
    with keras_ether.disabled(bank.model.base):
        np.testing.assert_array_equal(
            bank.model.predict(batch, verbose=0), expected
        )
        # A trial is not disturbed either.
        keras_ether.AdapterBank(bank.model.base, 2).close()


@pytest.mark.once
def test_a_head_that_is_quantized_later(rng):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    batch = banks.with_ids(x, bank.ids(NAMES))
    bank.model.base.get_layer("head").quantize("int8")
    for use in (
        lambda: bank.model(batch),
        lambda: bank.model.predict(batch, verbose=0),
        lambda: bank.model.predict_on_batch(batch),
    ):
        with pytest.raises(ValueError, match=r"'.*head'.*was quantized"):
            use()


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_code_of_a_users_own_that_is_compiled(rng):
    bank, _ = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    expected = banks.call(bank, x, NAMES)
    run = backends.compile_function(
        lambda x, ids: bank.model(banks.with_ids(x, ids))
    )
    found = run(
        ops.convert_to_tensor(x), ops.convert_to_tensor(bank.ids(NAMES))
    )
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)
