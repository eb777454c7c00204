"""All or nothing: a verb stopped half way leaves the model as it was."""

import inspect
import pathlib
import re
import sys
import warnings

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.callbacks import AdapterCheckpoint
from keras_ether.callbacks import resume
from tests import checks
from tests import models

pytestmark = checks.WITHOUT_ADVICE
PACKAGE = str(pathlib.Path(keras_ether.__file__).parent)
# How many places of each verb are tried: most where that is quickest.
PLACES = 20 if keras.backend.backend() == "torch" else 8


class Stop(BaseException):
    """As `KeyboardInterrupt`: nobody's error, at any moment."""


def calls_of_the_package(act, stop_at=None):
    """Runs `act` and counts the calls of functions; or stops it at one."""
    count = 0

    def watch(frame, event, argument):
        nonlocal count
        code = frame.f_code
        # What is raised in a generator that is being closed, goes nowhere.
        if code.co_flags & inspect.CO_GENERATOR:
            return
        if event == "call" and code.co_filename.startswith(PACKAGE):
            count += 1
            if count == stop_at:
                raise Stop

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def base():
    keras.utils.set_random_seed(0)
    model = models.mlp()
    optimizer = keras.optimizers.Nadam(0.01, use_ema=True)
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def apply(model):
    return keras_ether.apply(
        model, method="ether+", rank_blocks=2, trainable=["head"], seed=0
    )


X, Y = np.ones((8, 16), "float32"), np.zeros((8, 4), "float32")


def fit(model, **kwargs):
    return model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, **kwargs)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    fit(apply(base()), callbacks=[AdapterCheckpoint(path)])
    return path


VERBS = {
    # Whether the model has an adapter then, and what is done to it.
    "apply": (False, lambda model, path: apply(model)),
    "merge": (True, lambda model, path: keras_ether.merge(model)),
    "remove": (True, lambda model, path: keras_ether.remove(model)),
    "load_adapter": (False, keras_ether.load_adapter),
    "load_adapter again": (True, keras_ether.load_adapter),
    "resume": (False, resume),
    "resume again": (True, resume),
}


def prepared(verb):
    """A model that has trained and may be `verb`ed."""
    model = base()
    if VERBS[verb][0]:
        apply(model)
        model.compile(model.optimizer, "mse", run_eagerly=True)
    fit(model)
    if not VERBS[verb][0]:
        # The base that the file is for.
        for variable, value in zip(
            model.variables, models.values(base().variables), strict=True
        ):
            variable.assign(value)
    return model


@pytest.mark.by_turns
@pytest.mark.parametrize("verb", VERBS)
def test_stopped_at_any_call_it_changes_nothing(verb, path):
    model, other = prepared(verb), prepared(verb)
    act = VERBS[verb][1]
    count = calls_of_the_package(lambda: act(other, path))
    before = checks.state(model)
    stops = sorted(set(np.linspace(1, count, PLACES).astype(int).tolist()))
    for place in stops:
        with pytest.raises(Stop):
            calls_of_the_package(lambda: act(model, path), place)
        checks.unchanged(model, before)
    # It still can, and trains on from there as if nothing had been.
    act(model, path)
    fit(model), fit(other)
    checks.equal(model.variables, other.variables)


@pytest.mark.by_turns
@pytest.mark.parametrize("verb", VERBS)
def test_stopped_at_any_assignment_it_changes_nothing(verb, path, monkeypatch):
    model = prepared(verb)
    before = checks.state(model)
    original = keras.Variable.assign
    left = 0

    def assign(variable, value):
        nonlocal left
        left -= 1
        done = original(variable, value)
        if left == 0:
            raise Stop
        return done

    monkeypatch.setattr(keras.Variable, "assign", assign)
    for place in range(1, 1000):
        left = place
        try:
            VERBS[verb][1](model, path)
        except Stop:
            checks.unchanged(model, before)
        else:
            break
    assert place > 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fold_that_fails_leaves_every_kernel(dtype, error, monkeypatch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,), dtype=dtype)])
    for _ in range(4):
        model.add(keras.layers.Dense(8, dtype=dtype))
    keras_ether.apply(model, rank_blocks=2)
    before = checks.state(model)
    fold, count = keras_ether.adapters.adapter.Adapter.fold, 0

    def failing(adapter, kernel, call=None):
        nonlocal count
        count += 1
        if count == 3:
            raise error("no more")
        return fold(adapter, kernel, call)

    monkeypatch.setattr(keras_ether.adapters.adapter.Adapter, "fold", failing)
    with pytest.raises(error, match="no more"):
        keras_ether.merge(model)
    checks.unchanged(model, before)
    keras_ether.merge(model)


def test_an_adapter_that_cannot_be_built(monkeypatch):
    model = prepared("apply")
    before = checks.state(model)
    add, count = keras_ether.adapters.adapter.Adapter.add_weight, 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError
        return add(*args, **kwargs)

    monkeypatch.setattr(
        keras_ether.adapters.adapter.Adapter, "add_weight", failing
    )
    with pytest.raises(MemoryError):
        apply(model)
    checks.unchanged(model, before)


def check_warning(model, message, act):
    """As an error it changes nothing; else it names the line that calls."""
    before = checks.state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=re.escape(message)):
            act()
    checks.unchanged(model, before)
    with pytest.warns(UserWarning, match=re.escape(message)) as found:
        act()
    found = [w for w in found if message in str(w.message)]
    assert [w.filename for w in found] == [__file__]


def test_a_warning_of_apply():
    model = base()
    message = "is frozen now. If this layer is a new head, pass"
    message += " `trainable=['head']`"
    check_warning(model, message, lambda: keras_ether.apply(model))


@pytest.mark.parametrize("verb", ["load_adapter", "resume"])
def test_a_warning_of_loading(verb, path):
    model = prepared(verb)
    model.layers[0].kernel.assign(np.ones((16, 32)))
    act = VERBS[verb][1]
    check_warning(
        model, "another base", lambda: act(model, path, check_base=False)
    )


def test_a_warning_of_merge():
    model = models.mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize("int8", filters=lambda layer: layer.name != "head")
    keras_ether.apply(model, rank_blocks=2, trainable=["head"])
    check_warning(
        model,
        "rounded to integers again",
        lambda: keras_ether.merge(model, requantize=True),
    )
