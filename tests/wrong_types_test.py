"""Every argument of every public function, given another type's value."""

import inspect

import keras
import pytest

import keras_ether
from keras_ether import callbacks
from keras_ether import diagnostics
from keras_ether import layers
from keras_ether import methods

# What this checks comes before anything that depends on the backend.
pytestmark = pytest.mark.once
FILE = "m.ether.safetensors"
WRONG = [True, 5, 1.5, b"x", None, "x", [1], {"a": 1}, object()]


def plain():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(8, name="first"),
            keras.layers.Dense(4, name="head"),
        ]
    )


def adapted():
    return keras_ether.apply(plain(), trainable=["head"])


def disabled(**arguments):
    with keras_ether.disabled(**arguments):
        pass


def registered(**arguments):
    right = {
        "name": "another",
        "factors": str,
        "weights": ("u",),
        "start": str,
        "side": "input",
        "orthogonal": False,
        "learning_rate": 1.0,
        "min_width": 2,
    }
    methods.register(methods.Method(**(right | arguments)))


def diagnosed():
    return diagnostics.diagnose(adapted(), print_fn=str)


# The function; its other arguments; by argument, which of the values are right.
# Anything else that is not a ValueError fails.
EITHER = [True]
CASES = {
    keras_ether.apply: (
        lambda: {"model": plain()},
        {
            "method": [None],
            "targets": [None],
            "exclude": [None],
            "side": [None],
            "trainable": [None],
            "seed": [5, None],
            "strength": [None, 1],
        },
    ),
    keras_ether.merge: (lambda: {"model": adapted()}, {"requantize": EITHER}),
    keras_ether.remove: (lambda: {"model": adapted()}, {"reset_head": EITHER}),
    disabled: (lambda: {"model": adapted()}, {"model": []}),
    keras_ether.summary: (
        lambda: {"model": adapted(), "print_fn": str},
        {"print_fn": [None]},
    ),
    keras_ether.save_adapter: (
        lambda: {"model": adapted(), "filepath": FILE},
        {"metadata": [None, {"a": 1}]},
    ),
    keras_ether.load_adapter: (
        lambda: {"model": adapted(), "filepath": FILE},
        {"filepath": ["x"], "check_base": EITHER},
    ),
    keras_ether.read_adapter_header: (lambda: {}, {"filepath": ["x"]}),
    callbacks.AdapterCheckpoint: (
        lambda: {"filepath": FILE},
        {
            "monitor": ["x"],
            "verbose": [True],
            "save_best_only": EITHER,
            "save_freq": [5],
            "initial_value_threshold": [5, 1.5, None],
        },
    ),
    callbacks.resume: (
        lambda: {"model": adapted(), "filepath": FILE},
        {"filepath": ["x"], "check_base": EITHER},
    ),
    keras_ether.strength: (
        lambda: {"model": adapted(), "strength": 1.0},
        {"strength": [5, 1.5]},
    ),
    keras_ether.lora_factors: (lambda: {"model": adapted()}, {"skip": [None]}),
    keras_ether.to_lora: (lambda: {}, {}),
    keras_ether.copy: (lambda: {}, {}),
    keras_ether.export_to_peft: (
        lambda: {"task": adapted(), "folder": "out"},
        # These are right, and the task is what is refused then.
        {
            "folder": ["x"],
            "base_model_name_or_path": ["x", None],
            "skip": ["x", None],
        },
    ),
    keras_ether.blend: (
        lambda: {"model": plain(), "weights": {FILE: 1.0}},
        {"weights": [{"a": 1}], "check_base": EITHER},
    ),
    keras_ether.AdapterBank: (
        lambda: {"model": adapted(), "capacity": 2},
        {"capacity": [5], "trial": [None], "certify": EITHER},
    ),
    diagnostics.diagnose: (
        lambda: {"model": adapted(), "print_fn": str},
        {"energy": EITHER, "print_fn": [None]},
    ),
    diagnostics.DistanceLogger: (
        lambda: {},
        {"every": [5, None], "log_dir": [None, "x"]},
    ),
    diagnostics.plot_distances: (lambda: {"diagnosis": diagnosed()}, {}),
    diagnostics.plot_energy: (lambda: {"diagnosis": diagnosed()}, {}),
    diagnostics.plot_training: (lambda: {}, {"history": []}),
    methods.get: (lambda: {}, {}),
    methods.register: (lambda: {}, {}),
    registered: (
        lambda: {},
        {
            "name": ["x"],
            "factors": [],
            "weights": [],
            "start": [],
            "side": [],
            "orthogonal": EITHER,
            "learning_rate": [5, 1.5],
            "min_width": [5],
            "random_start": [None],
            "turns": EITHER,
            "shapes": [None],
            "thin": EITHER,
            "independent": EITHER,
            "starts_at_identity": EITHER,
            "identity_at_zero": EITHER,
        },
    ),
    layers.EtherDense: (
        lambda: {"units": 8},
        {
            "rank_blocks": [5],
            "method": [],
            "side": [None],
            "dropout": [],
            "seed": [5, None],
            "strength": [None, 1],
        },
    ),
}


def arguments():
    for function, (_, right) in CASES.items():
        names = list(inspect.signature(function).parameters)
        # Keras checks its own arguments of a layer.
        is_layer = function is layers.EtherDense
        for name in right if is_layer or "arguments" in names else names:
            yield function, name
    for name in right:
        yield function, name


NAMES = list(dict.fromkeys(arguments()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    keras_ether.save_adapter(adapted(), folder / FILE)
    return folder


@pytest.mark.parametrize(
    ("function", "name"), NAMES, ids=[f"{f.__name__}-{n}" for f, n in NAMES]
)
def test_is_one_clear_error(function, name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    others, right = CASES[function]
    for value in WRONG:
        if any(
            type(value) is type(fine) and value == fine
            for fine in right.get(name, [])
        ):
            continue
        with pytest.raises(ValueError) as caught:
            function(**(others() | {name: value}))
        # It shows what it received.
        assert repr(value) in str(caught.value), str(caught.value)


def test_nothing_public_is_left_out():
    missing = {
        getattr(keras_ether, name)
        for name in keras_ether.__all__
        if inspect.isfunction(getattr(keras_ether, name))
    } - {*CASES, keras_ether.disabled, keras_ether.plan}
    assert not missing
    assert inspect.signature(keras_ether.plan).parameters.keys() - {
        "print_fn"
    } == (inspect.signature(keras_ether.apply).parameters.keys())


def test_plan_has_the_checks_of_apply():
    with pytest.raises(ValueError, match="`print_fn` must be a function"):
        keras_ether.plan(plain(), print_fn=5)
    with pytest.raises(ValueError, match="`trainable` must be"):
        keras_ether.plan(plain(), trainable=True)
