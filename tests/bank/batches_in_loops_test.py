"""Larger batches, and changes of a bank, in the middle of a loop."""

import functools

import keras
import numpy as np
import pytest

import keras_ether
from tests.bank import banks

BACKEND = keras.backend.backend()
SIZES = (4, 16, 17, 3)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # Keras's, of data without a length.
    pytest.mark.filterwarnings("ignore:.*ran out of data"),
    # Keras's, where a file has no optimizer.
    pytest.mark.filterwarnings("ignore:Skipping variable loading"),
]


def bank_of(capacity=4):
    keras.utils.set_random_seed(0)
    model = banks.chain(
        (16,),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(3, name="head"),
    )
    bank = keras_ether.AdapterBank(model, capacity)
    for name in ("alice", "bob"):
        bank.add(name)
    bank.model.compile("sgd", "mse")
    return bank


def batches(bank, sizes=SIZES, width=3):
    rng = np.random.default_rng(1)
    for size in sizes:
        x = rng.normal(size=(size, 16)).astype("float32")
        names = [("alice", "bob")[i % 2] for i in range(size)]
        y = rng.normal(size=(size, width)).astype("float32")
        yield {"inputs": x, "adapter_id": bank.ids(names)}, y


def assert_same(bank, other):
    for name in ("alice", "bob"):
        for key, value in banks.row(other, name).items():
            found = banks.row(bank, name)[key]
            np.testing.assert_allclose(found, value, atol=1e-6)


@pytest.mark.parametrize("kind", ["generator", "dataset"])
def test_later_batches_that_are_larger_have_a_trial(kind):
    bank, other = bank_of(), bank_of()
    for x, y in batches(other):
        other.model.train_on_batch(x, y)
    data = batches(bank)
    if kind == "dataset":
        data = banks.Batches(data)
    bank.model.fit(data, verbose=0, shuffle=False)
    assert_same(bank, other)
    x, _ = next(batches(bank, [40]))
    parts = [{k: v[i:j] for k, v in x.items()} for i, j in ((0, 8), (8, 40))]
    found = bank.model.predict(((part,) for part in parts), verbose=0)
    wanted = other.model.predict(x, batch_size=40, verbose=0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="It reads all batches in its graph."
)
def test_a_pipeline_of_unknown_length_loses_no_batch():
    tf = pytest.importorskip("tensorflow")
    bank, other = bank_of(), bank_of()
    for _ in range(2):
        for x, y in batches(other, (16, 16, 8)):
            other.model.train_on_batch(x, y)
    ((x, y),) = batches(bank, (40,))
    # Those of the other bank, which draws them one after the other.
    parts = list(batches(bank, (16, 16, 8)))
    x = {k: np.concatenate([part[0][k] for part in parts]) for k in x}
    y = np.concatenate([part[1] for part in parts])
    data = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True)
    bank.model.fit(data.batch(16), epochs=2, verbose=0, shuffle=False)
    assert_same(bank, other)


class Adds(keras.callbacks.Callback):
    """Adds an adapter after a step."""

    def __init__(self, bank):
        super().__init__()
        self.bank, self.steps = bank, 0

    def step(self, batch, logs=None):
        self.steps += 1
        if self.steps == 2:
            self.bank.add("carol")

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = step


@pytest.mark.parametrize("loop", ["fit", "evaluate"])
def test_a_step_that_fails_after_an_adapter_was_added(loop):
    bank = bank_of()

    def data():
        yield from batches(bank, (8, 8))
        yield from batches(bank, (8,), width=5)

    run = getattr(bank.model, loop)
    if loop == "fit":
        run = functools.partial(run, shuffle=False)
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        run(data(), verbose=0, callbacks=[Adds(bank)])
    x, _ = next(batches(bank, [4]))
    assert np.isfinite(bank.model.predict(x, verbose=0)).all()
    assert np.isfinite(bank.predict(x["inputs"], ["carol"] * 4)).all()
    bank.add("dave")


@pytest.mark.parametrize("kind", ["arrays", "generator"])
@pytest.mark.parametrize("loop", ["fit", "evaluate"])
def test_ids_of_data_that_a_loop_reads_do_not_end(loop, kind, tmp_path):
    """They would train nobody, and answer NaN, without an error."""
    bank, other = bank_of(capacity=3), bank_of(capacity=3)
    file = tmp_path / "bank.weights.h5"
    bank.model.save_weights(file)
    bank.add("carol")
    refused = []

    class Ends(keras.callbacks.Callback):
        def step(self, batch, logs=None):
            for end, message in (
                (lambda: bank.remove("alice"), "data of a running `fit`"),
                (lambda: bank.model.load_weights(file), "can't run while"),
            ):
                with pytest.raises(ValueError, match=message):
                    end()
                refused.append(end)
            # Only what is not in use goes.
            bank.add("dave", evict=True)

        on_train_batch_end = on_test_batch_end = step

    for one, callbacks in ((bank, [Ends()]), (other, None)):
        data = batches(one, (8, 8))
        x, y = next(batches(one, (8,)))
        data = (x, y) if kind == "arrays" else (data,)
        arguments = {"shuffle": False} if loop == "fit" else {}
        getattr(one.model, loop)(
            *data, verbose=0, callbacks=callbacks, **arguments
        )
    assert refused
    assert bank.names == ["alice", "bob", "dave"]
    assert_same(bank, other)
    bank.remove("alice")
    bank.model.load_weights(file)
    assert bank.names == ["alice", "bob"]


@pytest.mark.parametrize("loop", ["fit", "predict"])
def test_a_bank_that_is_closed_while_it_loops(loop):
    bank = bank_of()
    x, y = next(batches(bank, (8,)))
    close = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: bank.close()
    )
    close.on_predict_batch_end = lambda batch, logs: bank.close()
    arguments = {"y": y} if loop == "fit" else {}
    with pytest.raises(ValueError, match="is closed"):
        getattr(bank.model, loop)(
            x, batch_size=2, verbose=0, callbacks=[close], **arguments
        )


@pytest.mark.skipif(BACKEND != "jax", reason="Others leave the values there.")
def test_an_outer_loop_that_holds_the_weights():
    bank = bank_of()
    outer = banks.outer(bank)
    x, _ = next(batches(bank, [8]))
    wanted = bank.model.predict(x, verbose=0)
    with pytest.raises(RuntimeError, match="loop of another model"):
        outer.predict(x, batch_size=2, verbose=0, callbacks=[Adds(bank)])
    assert bank.names == ["alice", "bob"]
    outer.jax_state_sync()
    np.testing.assert_array_equal(bank.model.predict(x, verbose=0), wanted)

    class Syncs(Adds):
        def on_predict_batch_end(self, batch, logs=None):
            outer.jax_state_sync()
            self.step(batch, logs)

    outer.predict(x, batch_size=2, verbose=0, callbacks=[Syncs(bank)])
    assert bank.names == ["alice", "bob", "carol"]
    assert np.isfinite(bank.predict(x["inputs"], ["carol"] * 8)).all()


@pytest.mark.skipif(BACKEND != "jax", reason="Others write in place.")
def test_an_interrupt_between_a_row_and_its_variables(monkeypatch):
    bank = bank_of()
    x, _ = next(batches(bank, [8]))
    wanted = bank.model.predict(x, verbose=0)
    first = bank.model.trainable_variables[0]
    assign, calls = type(first).assign, []

    def interrupted(variable, value):
        calls.append(variable)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return assign(variable, value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(first), "assign", interrupted)
        bank.add("carol")
    assert calls
    np.testing.assert_array_equal(bank.model.predict(x, verbose=0), wanted)
