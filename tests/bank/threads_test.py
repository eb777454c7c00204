"""Whatever several threads do, every answer is its own adapter's."""

import sys
import threading
import time

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.bank.access import Access
from tests import models
from tests.bank import banks
from tests.bank import generating_test

JIT = "auto" if keras.backend.backend() == "jax" else False
SECONDS = 2.0


@pytest.fixture(autouse=True)
def switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_together(*functions, seconds=SECONDS, least=1, at_most=60.0):
    """Runs functions again and again, each in a thread, for some time.

    A function may return `False` for a turn that found out nothing. However
    slow the machine, each has `least` other turns.
    """
    start = time.monotonic()
    failed, counts = [], [0] * len(functions)

    def again(place, function):
        while not failed:
            passed = time.monotonic() - start
            if passed > (seconds if min(counts) >= least else at_most):
                break
            try:
                counts[place] += function() is not False
            except Exception as error:
                failed.append(error)

    threads = [
        threading.Thread(target=again, args=part)
        for part in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * at_most)
        assert not thread.is_alive()
    if failed:
        raise failed[0]
    assert min(counts) >= least, counts


def test_calls_beside_others_that_evict(rng):
    """`add(evict=True)` beside `predict`, calls and `using`."""
    bank, alone = banks.bank_of(capacity=2, adapters=2)
    extra = banks.bank_of()[1]
    for i, model in enumerate(extra):
        for variable in model.trainable_variables:
            variable.assign(models.values([variable])[0] * (1.3 + i))
    sources = dict(zip("abcd", [*alone, *extra], strict=True))
    x = models.inputs_of("mlp", rng, samples=2)
    wanted = {name: models.call(m, x) for name, m in sources.items()}
    for name in ("a0", "a1"):
        bank.remove(name)
    random = np.random.default_rng(0)

    def ask(how):
        def one():
            name = str(random.choice(list(sources)))
            try:
                if name not in bank.names:
                    bank.add(name, sources[name], evict=True)
                found = how(name)
            except ValueError as error:
                # Another thread was quicker.
                assert "bank" in str(error), error
                return False
            np.testing.assert_allclose(found, wanted[name], atol=1e-4)
            return True

        return one

    def by_ids(name):
        with bank.using([name, name]) as ids:
            return models.call(bank.model, banks.with_ids(x, ids))

    def by_old_ids(name):
        ids = bank.ids([name, name])
        return bank.model.predict_on_batch(banks.with_ids(x, ids))

    # What is compiled first is compiled before.
    ids = [bank.add(name, sources[name]) for name in "ab"]
    bank.predict(x, ["a", "b"])
    bank.model.predict_on_batch(banks.with_ids(x, ids))
    run_together(
        ask(lambda name: bank.predict(x, [name] * 2)),
        ask(by_ids),
        ask(by_old_ids),
        least=2,
    )


def test_adapters_that_come_and_go_beside_training(rng):
    """What is added is what answers, and what trains is no one else's."""
    bank, alone = banks.bank_of(capacity=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    bank.model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=JIT)
    x, y = models.inputs_of("mlp", rng), np.arange(8) % 4
    wanted = [models.call(model, x) for model in alone]
    batch = banks.with_ids(x, bank.ids(["a1"] * 8))
    bank.model.train_on_batch(batch, y)
    places = iter(range(10**6))

    def come_and_go():
        i = next(places) % 2
        bank.add("b", alone[i])
        found = banks.call(bank, x, ["b"] * 8)
        np.testing.assert_allclose(found, wanted[i], atol=1e-4)
        if i:
            bank.remove("b")

    run_together(
        lambda: bank.model.train_on_batch(batch, y), come_and_go, least=2
    )
    np.testing.assert_allclose(
        banks.call(bank, x, ["a0"] * 8), wanted[0], atol=1e-4
    )


def test_adapters_come_and_go_while_a_loop_has_the_weights(rng):
    """From the loop's callbacks, and from another thread."""
    bank, alone = banks.bank_of(capacity=4)
    bank.model.compile("sgd", "mse", jit_compile=JIT)
    x = models.inputs_of("mlp", rng)
    wanted = models.call(alone[0], x)
    batch = banks.with_ids(x, bank.ids(["a1"] * 8))
    bank.add("old", alone[0])
    threads = []

    class Changing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                bank.add("new", alone[0])
                bank.remove("old")
                thread = threading.Thread(target=bank.add, args=("late",))
                thread.start()
                threads.append(thread)

        def on_predict_batch_end(self, batch, logs=None):
            if batch == 0:
                bank.add("new", alone[0])

    changing = Changing()
    bank.model.fit(
        batch, x[:, :4], batch_size=2, verbose=0, callbacks=[changing]
    )
    for thread in threads:
        thread.join(60)
    bank.model.predict(batch, batch_size=2, verbose=0, callbacks=[changing])
    assert set(bank.names) == {"a0", "a1", "new", "late"}
    np.testing.assert_allclose(
        banks.call(bank, x, ["new"] * 8), wanted, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore:.*learning rate of 2e-05")
@pytest.mark.nightly
def test_generation_beside_others_that_evict(rng):
    alone = [generating_test.task(i, "greedy") for i in range(3)]
    x = generating_test.prompts(rng, count=2)
    wanted = [
        model.generate(x, stop_token_ids=None)["token_ids"] for model in alone
    ]
    bank = keras_ether.AdapterBank(generating_test.task(9, "greedy"), 2)
    bank.add("u0", alone[0])
    bank.generate(x, ["u0"] * 2, stop_token_ids=None)
    random = np.random.default_rng(0)

    def one():
        i = int(random.integers(3))
        try:
            if f"u{i}" not in bank.names:
                bank.add(f"u{i}", alone[i], evict=True)
            found = bank.generate(x, [f"u{i}"] * 2, stop_token_ids=None)
        except ValueError as error:
            assert "bank" in str(error), error
            return False
        np.testing.assert_array_equal(found["token_ids"], wanted[i])
        return True

    run_together(one, one, one, seconds=4 * SECONDS)


def test_the_model_itself_beside_its_bank(rng):
    bank, (alone, _) = banks.bank_of()
    x = models.inputs_of("mlp", rng)

    def ask(call, model):
        wanted = models.call(model, x)
        return lambda: np.testing.assert_allclose(call(), wanted, atol=1e-5)

    host = bank.model.base
    run_together(
        ask(lambda: models.call(host, x), host),
        ask(lambda: banks.call(bank, x, ["a0"] * 8), alone),
        ask(lambda: banks.call(bank, x, [None] * 8), banks.plain("mlp")),
        seconds=0.5,
        least=6,
    )


@pytest.mark.once
def test_a_call_is_no_place_to_change_its_own_bank(rng):
    bank, _ = banks.bank_of()
    with (
        bank.model.access.shared(),
        pytest.raises(RuntimeError, match="within one of its own calls"),
    ):
        bank.add("a0")


@pytest.mark.once
def test_who_is_alone_and_who_shares():
    access, log = Access(), []

    def change():
        with access.alone(), access.alone(), access.shared():
            log.append("in")
            time.sleep(0.01)
            log.append("out")

    def call():
        with access.shared(), access.shared():
            assert log.count("in") == log.count("out")
            time.sleep(0.001)
            assert log.count("in") == log.count("out")

    # Calls have their turn even though a change is always waiting.
    run_together(change, call, call, change, seconds=0.5, at_most=5.0)
    assert log == ["in", "out"] * (len(log) // 2)
