"""One adapted model, asked by many threads at once."""

import contextlib
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_ether
from tests import kinds
from tests import models

METHODS = ["ether+", "ether", "oft"]


@contextlib.contextmanager
def short_switch_interval():
    """Has threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def collections_in_python():
    """Has Python's collector run often, and call Python code each time.

    JAX and Hypothesis register such callbacks.
    """

    def callback(phase, info):
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(20, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(callback)


def ask(function, inputs, threads=8):
    with short_switch_interval(), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, inputs))


def one_by_one(x, times):
    """Requests of one sample each."""
    return [x[i % len(x)][None] for i in range(times)]


def check_threads(model, layer, x, times=48):
    attributes = dict(layer.__dict__)
    adapter = dict(layer.ether.__dict__)

    def answer(one):
        return models.call(model, one)

    requests = one_by_one(x, times)
    expected = [answer(one) for one in requests[: len(x)]]
    for i, found in enumerate(ask(answer, requests)):
        np.testing.assert_allclose(found, expected[i % len(x)], atol=1e-5)
    assert layer.__dict__ == attributes
    assert layer.ether.__dict__ == adapter


@pytest.mark.by_turns
@pytest.mark.parametrize(("kind", "method"), kinds.sweep(*METHODS))
def test_every_kind_answers_right(kind, method, rng):
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    check_threads(model, kinds.adapt(model, method, rng), x)


@pytest.mark.by_turns
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.filterwarnings("ignore:These layers stay trainable")
@pytest.mark.parametrize("method", ["ether", "ether+"])
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_layers_answer_right(mode, method, rng):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, "relu", bias_initializer="ones", name="a"),
            keras.layers.Dense(4, name="head"),
        ]
    )
    model.quantize(mode)
    keras_ether.apply(
        model,
        targets=["a"],
        method=method,
        rank_blocks=2,
        side="both",
        trainable=["head"],
    )
    x = rng.standard_normal((4, 8)).astype("float32")
    check_threads(model, model.get_layer("a"), x)


def test_predictions_answer_right(rng):
    model, x = models.mlp(), models.inputs_of("mlp", rng)
    try:
        model.predict_on_batch(x[:1])
        ask(model.predict_on_batch, one_by_one(x, 48))
    except ValueError as error:
        assert "donated" in str(error)
        pytest.skip("on JAX Keras hands the weights to one prediction a time")
    keras_ether.apply(model, method="ether+", trainable=["head"], rank_blocks=2)
    for layer in model.layers:
        if hasattr(layer, "ether"):
            kinds.randomize(layer, rng)

    def answer(one):
        return model.predict_on_batch(one)

    requests = one_by_one(x, 48)
    expected = [answer(one) for one in requests[: len(x)]]
    for i, found in enumerate(ask(answer, requests)):
        np.testing.assert_allclose(found, expected[i % len(x)], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*learning rate of 2e-05")
def test_generated_tokens_are_right(rng):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=50,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=12,
    )
    task = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    task.compile(sampler="greedy")
    keras_ether.apply(task, method="ether+", targets="all-linear")
    for layer in backbone._flatten_layers():
        if hasattr(layer, "ether"):
            kinds.randomize(layer, rng)
    prompts = [
        {
            "token_ids": np.pad(
                rng.integers(1, 50, (1, 4)), ((0, 0), (0, 6))
            ).astype("int32"),
            "padding_mask": np.pad(np.ones((1, 4), "int32"), ((0, 0), (0, 6))),
        }
        for _ in range(4)
    ]

    def answer(prompt):
        output = task.generate(prompt, stop_token_ids=None)
        return np.asarray(ops.convert_to_numpy(output["token_ids"]))

    expected = [answer(prompt) for prompt in prompts]
    for i, found in enumerate(ask(answer, prompts * 3, threads=4)):
        np.testing.assert_array_equal(found, expected[i % 4])


@pytest.mark.filterwarnings("ignore:.*learning rate of 5e-05")
@pytest.mark.parametrize(
    "seconds", [1, pytest.param(10, marks=pytest.mark.nightly)]
)
def test_load_beside_a_switch_on_another_model(seconds, rng):
    """16 threads on one task, while another is disabled and enabled."""
    asked, other = models.bert(), models.bert()
    for task in (asked, other):
        keras_ether.apply(task, method="ether+", targets="all-linear")
    for layer in asked._flatten_layers():
        if hasattr(layer, "ether"):
            kinds.randomize(layer, rng)
    x = models.inputs_of("bert", rng)
    requests = [{k: v[i : i + 1] for k, v in x.items()} for i in range(8)]
    expected = [models.call(asked, one) for one in requests]
    end = time.monotonic() + seconds
    wrong, answers = [], []

    def switch():
        while time.monotonic() < end:
            with keras_ether.disabled(other):
                models.call(other, requests[0])

    def client(number):
        while time.monotonic() < end:
            i = number % 8
            found = models.call(asked, requests[i])
            answers.append(i)
            if not np.allclose(found, expected[i], atol=1e-5):
                wrong.append(i)
            number += 1

    threads = [threading.Thread(target=switch)] + [
        threading.Thread(target=client, args=(number,)) for number in range(16)
    ]
    with short_switch_interval():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) >= 16
    assert not wrong


def test_other_threads_can_make_tuples_while_a_model_changes():
    """The search for models around a layer sees the objects of all threads."""
    model, raised, done = models.mlp(), [], threading.Event()
    # As many objects as a larger process has.
    others = [[] for _ in range(300_000)]

    def make_tuples():
        while not done.is_set():
            try:
                tuple(i for i in range(3000))
            except SystemError as error:
                raised.append(error)

    with collections_in_python(), ThreadPoolExecutor(1) as pool:
        pool.submit(make_tuples)
        try:
            for _ in range(5):
                keras_ether.apply(model, trainable=["head"])
                keras_ether.remove(model)
        finally:
            done.set()
    assert others and not raised
