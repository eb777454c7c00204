"""All or nothing: a verb stopped half way leaves the model as it was."""

import inspect
import pathlib
import sys
import warnings

import keras
import numpy as np
import pytest

import keras_ether
from keras_ether.callbacks import AdapterCheckpoint
from keras_ether.callbacks import resume
from keras_ether.surgery.layer_tree import LayerTree
from tests import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
]
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


def structure(value, seen):
    """A value's identity, and of containers what is in them."""
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    if id(value) in seen:
        return id(value)
    if isinstance(value, dict):
        seen = seen | {id(value)}
        # The order of attributes means nothing.
        inside = {k: structure(v, seen) for k, v in value.items()}
        return id(value), inside
    if isinstance(value, (list, tuple)):
        seen = seen | {id(value)}
        # A tuple that Keras makes anew has the same parts.
        own = None if isinstance(value, tuple) else id(value)
        return own, [structure(v, seen) for v in value]
    if isinstance(value, set):
        return id(value), sorted(map(hash, value))
    if type(value).__name__ == "TrackableReference":
        # TensorFlow's record of an attribute.
        return value.name, id(value.ref)
    if type(value).__name__ == "Tracker":
        return structure(vars(value), seen | {id(value)})
    return id(value)


def fingerprint(model):
    """Everything that a verb could have changed."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", None)
    owners = LayerTree(model).all_layers
    owners += [o for o in (optimizer, inner) if o is not None]
    variables = list(model.variables)
    if optimizer is not None:
        variables += optimizer.variables
    state = []
    for owner in owners:
        state.append((owner, type(owner), structure(vars(owner), frozenset())))
    for variable in variables:
        asks = getattr(variable.value, "requires_grad", None)
        state.append((id(variable), variable.path, variable.trainable, asks))
    return state, models.values(variables)


def check_same(before, after):
    for then, now in zip(before[0], after[0], strict=True):
        assert then == now
    for then, now in zip(before[1], after[1], strict=True):
        assert then.dtype == now.dtype
        np.testing.assert_array_equal(now, then)


def base(optimizer=None):
    keras.utils.set_random_seed(0)
    model = models.mlp()
    optimizer = optimizer or keras.optimizers.Nadam(0.01, use_ema=True)
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


def prepared(verb, path, optimizer=None):
    """A model that has trained and may be `verb`ed."""
    model = base(optimizer)
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
    model, other = prepared(verb, path), prepared(verb, path)
    act = VERBS[verb][1]
    count = calls_of_the_package(lambda: act(other, path))
    before = fingerprint(model)
    stops = sorted(set(np.linspace(1, count, PLACES).astype(int).tolist()))
    for place in stops:
        with pytest.raises(Stop):
            calls_of_the_package(lambda: act(model, path), place)
        check_same(before, fingerprint(model))
    # It still can, and trains on from there as if nothing had been.
    act(model, path)
    fit(model), fit(other)
    for ours, theirs in zip(
        models.values(model.variables),
        models.values(other.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.by_turns
@pytest.mark.parametrize("verb", VERBS)
def test_stopped_at_any_assignment_it_changes_nothing(verb, path, monkeypatch):
    model = prepared(verb, path)
    before = fingerprint(model)
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
            check_same(before, fingerprint(model))
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
    before = fingerprint(model)
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
    check_same(before, fingerprint(model))
    keras_ether.merge(model)


def test_an_adapter_that_cannot_be_built(monkeypatch):
    model = prepared("apply", None)
    before = fingerprint(model)
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
    check_same(before, fingerprint(model))


def check_points_here(message, act):
    """The warning names the line that calls the package."""
    with pytest.warns(UserWarning, match=message) as found:
        act()
    found = [w for w in found if message in str(w.message)]
    assert [w.filename for w in found] == [__file__]


def test_a_warning_that_is_an_error_of_apply():
    model, message = base(), "is frozen now"
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match=message):
            keras_ether.apply(model)
    check_same(before, fingerprint(model))
    check_points_here(message, lambda: keras_ether.apply(model))


@pytest.mark.parametrize("verb", ["load_adapter", "resume"])
def test_a_warning_that_is_an_error_of_loading(verb, path):
    model = prepared(verb, path)
    model.layers[0].kernel.assign(np.ones((16, 32)))
    act = {"load_adapter": keras_ether.load_adapter, "resume": resume}[verb]
    before = fingerprint(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="another base"):
            act(model, path, check_base=False)
    check_same(before, fingerprint(model))


def test_a_warning_that_is_an_error_of_merge():
    model = models.mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.quantize("int8", filters=lambda layer: layer.name != "head")
    keras_ether.apply(model, rank_blocks=2, trainable=["head"])
    before = fingerprint(model)
    with pytest.raises(UserWarning, match="rounded to integers again"):
        keras_ether.merge(model, requantize=True)
    check_same(before, fingerprint(model))
    check_points_here(
        "rounded to int", lambda: keras_ether.merge(model, requantize=True)
    )


def test_state_of_another_optimizer_brings_the_slots_back(path):
    model = prepared("resume", path, keras.optimizers.SGD(0.1, momentum=0.9))
    before = fingerprint(model)
    with pytest.raises(ValueError, match="the file's Nadam"):
        resume(model, path)
    check_same(before, fingerprint(model))
    expected = fit(prepared("apply", path, keras.optimizers.SGD(0.1, 0.9)))
    assert fit(model).history == expected.history
