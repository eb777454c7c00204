"""Adapters come and go by name, and what does not fit is refused."""

import contextlib
import gc

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from tests import models
from tests import tuned
from tests.bank import banks


def answers(bank, name, x):
    return banks.call(bank, x, [name] * len(x))


@contextlib.contextmanager
def unchanged(bank):
    """Checks that a block leaves names, ids and values."""
    names, ids = bank.names, bank.ids(bank.names)
    with banks.unchanged(*bank.model.variables):
        yield
    assert bank.names == names
    np.testing.assert_array_equal(bank.ids(names), ids)


def test_files_models_and_fresh_starts(rng, tmp_path):
    bank, alone = banks.bank_of(adapters=1)
    x = models.inputs_of("mlp", rng)
    keras_ether.save_adapter(alone[0], tmp_path / "a.safetensors")
    assert bank.add("file", tmp_path / "a.safetensors") == 2
    assert bank.add("fresh") == 3
    assert bank.names == ["a0", "file", "fresh"]
    assert bank.ids(["fresh", None, "a0"]).tolist() == [3, 0, 1]
    assert bank.ids(["a0"]).dtype == "int32"
    np.testing.assert_array_equal(
        answers(bank, "file", x), answers(bank, "a0", x)
    )
    fresh, base = answers(bank, "fresh", x), answers(bank, None, x)
    assert np.abs(fresh - base).max() > 1e-3


def test_saved_adapters_are_those_that_were_added(rng, tmp_path):
    bank, alone = banks.bank_of("mlp", "ether+")
    bank.save("a1", tmp_path / "a1.safetensors")
    loaded = keras_ether.load_adapter(
        banks.plain("mlp", "ether+"), tmp_path / "a1.safetensors"
    )
    x = models.inputs_of("mlp", rng)
    np.testing.assert_array_equal(
        models.call(loaded, x), models.call(alone[1], x)
    )


@pytest.mark.once
def test_an_adapter_of_fewer_layers_is_the_identity_on_the_others(
    rng, tmp_path
):
    part = tuned.base("mlp")
    keras_ether.apply(
        part,
        rank_blocks=2,
        targets=["second"],
        trainable=["head"],
        method="ether",
    )
    tuned.move(part.trainable_weights, 3)
    bank, _ = banks.bank_of()
    file = tmp_path / "part.safetensors"
    keras_ether.save_adapter(part, file)
    bank.add("part", file)
    x = models.inputs_of("mlp", rng)
    np.testing.assert_allclose(
        answers(bank, "part", x), models.call(part, x), atol=1e-5
    )
    again = tmp_path / "again.safetensors"
    bank.save("part", again)
    headers = [keras_ether.read_adapter_header(f) for f in (file, again)]
    assert headers[0] == headers[1]


@pytest.mark.once
def test_replacing_keeps_the_id(rng):
    bank, alone = banks.bank_of()
    x = models.inputs_of("mlp", rng)
    assert bank.add("a0", alone[1]) == 1
    np.testing.assert_array_equal(
        answers(bank, "a0", x), answers(bank, "a1", x)
    )


@pytest.mark.once
def test_a_full_bank(rng):
    bank, alone = banks.bank_of(capacity=2)
    with (
        unchanged(bank),
        pytest.raises(ValueError, match=r"full.*room for 2.*'a0'"),
    ):
        bank.add("more")
    bank.ids(["a0"])
    assert bank.add("more", alone[0], evict=True) == 5
    assert bank.names == ["a0", "more"]


@pytest.mark.once
def test_the_row_freed_longest_ago_is_taken_first():
    bank, _ = banks.bank_of(capacity=2)
    bank.remove("a1")
    bank.remove("a0")
    # The second adapter of row 2, of three with the base's.
    assert bank.add("b") == 3 + 2


def _applied(**arguments):
    model = tuned.base("mlp")
    return keras_ether.apply(model, **{"rank_blocks": 2} | arguments)


def _other_head():
    model = tuned.base("mlp")
    head = keras.layers.Dense(7, name="head")(model.get_layer("second").output)
    model = keras.Model(model.inputs[0], head)
    return keras_ether.apply(model, rank_blocks=2, trainable=["head"])


UNFIT = [
    (lambda: tuned.adapted("mlp", base_seed=1), "another base.*'first'"),
    (
        lambda: tuned.adapted("mlp", "ether+"),
        r"method='ether', .*method='ether\+'",
    ),
    (
        lambda: _applied(rank_blocks=4, trainable=["head"]),
        "rank_blocks=2.*rank_blocks=4",
    ),
    (lambda: _applied(targets="all-linear"), "for 'head', but the bank"),
    (
        lambda: _applied(targets=["first", "second"], method="ether"),
        "other trained layers must be",
    ),
    (_other_head, "does not fit|shape"),
    (lambda: tuned.base("mlp"), "no ETHER adapter"),
    (lambda: 3, "must be the path"),
]


def check_refused(source, message):
    bank, _ = banks.bank_of(capacity=2)
    with unchanged(bank):
        with pytest.raises(ValueError, match=message):
            bank.add("a0", source)
        with pytest.raises(ValueError, match=message):
            bank.add("other", source, evict=True)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*the last linear layer")
@pytest.mark.parametrize(("make", "message"), UNFIT)
def test_what_does_not_fit_is_refused(make, message):
    check_refused(make(), message)


@pytest.mark.once
def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "damaged.safetensors"
    keras_ether.save_adapter(tuned.adapted("mlp"), file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    check_refused(file, "damaged")


@pytest.mark.once
def test_names_are_strings():
    bank, _ = banks.bank_of()
    for name in ("", None, 3):
        with pytest.raises(ValueError, match="must be a non-empty string"):
            bank.add(name)


@pytest.mark.once
def test_capacity_is_a_positive_integer():
    model = tuned.adapted("mlp")
    for capacity in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="capacity"):
            keras_ether.AdapterBank(model, capacity)


@pytest.mark.once
def test_other_models_are_refused():
    with pytest.raises(ValueError, match="no ETHER adapter"):
        keras_ether.AdapterBank(models.mlp(), 2)
    bank, _ = banks.bank_of()
    with pytest.raises(ValueError, match="another bank"):
        keras_ether.AdapterBank(bank.model, 2)


@pytest.mark.once
def test_unknown_names_are_told_near_ones():
    bank, _ = banks.bank_of()
    for ask in (
        lambda: bank.ids(["a9"]),
        lambda: bank.remove("a9"),
        lambda: bank.predict(np.ones((1, 16), "float32"), ["a9"]),
    ):
        with pytest.raises(ValueError, match=r"'a9'.* names: .*'a"):
            ask()


@pytest.mark.once
def test_adapters_in_use_stay():
    bank, alone = banks.bank_of(capacity=2)
    with bank.using(["a0", None, "a0"]) as ids:
        with bank.using(["a0"]):
            pass
        with pytest.raises(ValueError, match="'a0' is in use"):
            bank.remove("a0")
        bank.add("b", alone[0], evict=True)
        assert bank.names == ["a0", "b"]
        np.testing.assert_array_equal(ids, bank.ids(["a0", None, "a0"]))
        with (
            bank.using(["b"]),
            pytest.raises(ValueError, match="all of its 2 adapters are in use"),
        ):
            bank.add("c", alone[0], evict=True)
    bank.remove("a0")


@pytest.mark.once
def test_an_adapter_that_can_not_be_written_leaves_no_half(rng, monkeypatch):
    bank, alone = banks.bank_of(capacity=2)
    x = models.inputs_of("mlp", rng)
    old, before = bank.ids(["a0"] * len(x)), answers(bank, "a1", x)

    def fail(row, values):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setitem(bank.model.__dict__, "write", fail)
        with pytest.raises(MemoryError):
            bank.add("b", alone[0], evict=True)
    assert bank.names == ["a1"]
    np.testing.assert_array_equal(answers(bank, "a1", x), before)
    with pytest.raises(ValueError, match="An id ends"):
        models.call(bank.model, banks.with_ids(x, old))
    bank.add("b", alone[0])
    assert bank.names == ["b", "a1"]


@pytest.mark.once
def test_the_base_of_now_counts(rng, tmp_path):
    """A file of another base is refused, though it was the base before."""
    bank, alone = banks.bank_of()
    file = tmp_path / "a.safetensors"
    keras_ether.save_adapter(alone[0], file)
    kernel = bank.model.base.get_layer("first").base_kernel
    kernel.assign(models.values([kernel])[0] + 1)
    with pytest.raises(ValueError, match="another base"):
        bank.add("b", file)


def test_a_closed_bank_leaves_the_model_as_it_was(rng):
    model = tuned.adapted("mlp")
    layers = [model, *model._flatten_layers()]
    before = [dict(vars(layer)) for layer in layers]
    x = models.inputs_of("mlp", rng)
    with keras_ether.AdapterBank(model, 2) as bank:
        other = keras_ether.AdapterBank(model, 2)
        bank.add("a")
        bank.predict(x, ["a"] * len(x))
    other.add("b")
    other.predict(x, ["b"] * len(x))
    for use in (
        lambda: bank.predict(x, ["a"] * len(x)),
        lambda: bank.add("c"),
        lambda: banks.call(bank, x, ["a"] * len(x)),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    other.close()
    for layer, attributes in zip(layers, before, strict=True):
        assert vars(layer).keys() == attributes.keys()


@pytest.mark.once
def test_a_bank_that_is_dropped_leaves_the_model_as_it_was():
    model = tuned.adapted("mlp")
    head = model.get_layer("head")
    before = set(vars(head))
    bank_model = keras_ether.AdapterBank(model, 2).model
    gc.collect()
    assert set(vars(head)) > before
    del bank_model
    gc.collect()
    assert set(vars(head)) == before


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*learning rate")
def test_raw_inputs_of_a_task_are_preprocessed(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "bad"]
    task = keras_hub.models.BertTextClassifier(
        models.bert_backbone(vocabulary_size=len(words)),
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.tokenizers.BertTokenizer(words), sequence_length=6
        ),
    )
    keras_ether.apply(task, rank_blocks=2)
    bank = keras_ether.AdapterBank(task, 2)
    bank.add("ann")
    texts, names = ["a film", "bad film"], [None, "ann"]
    found = bank.predict(texts, names)
    np.testing.assert_allclose(found[0], task.predict(texts)[0], atol=1)
    ready = task.preprocessor(texts)
    ready = {n: models.values([v])[0] for n, v in ready.items()}
    np.testing.assert_allclose(bank.predict(ready, names), found, atol=1e-5)
    with pytest.raises(ValueError, match="1 ids for 2 examples"):
        bank.predict(texts, ["ann"])
