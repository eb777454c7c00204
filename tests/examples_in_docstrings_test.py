"""Every example in a public docstring runs."""

import doctest
import importlib
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether
from keras_ether import layers
from keras_ether.methods import ether
from keras_ether.ops import reflections

PACKAGE = pathlib.Path(keras_ether.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is frozen now"),
    # "adam" is what a reader knows.
    pytest.mark.filterwarnings("ignore:.*learning rate of 0.001"),
]


def example_model():
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    return keras_ether.apply(model, method="ether")


def names():
    return {
        "keras": keras,
        "keras_ether": keras_ether,
        "np": np,
        "ops": ops,
        **{name: getattr(layers, name) for name in layers.__all__},
        **vars(reflections),
        **vars(ether),
        "model": example_model(),
        "x": np.ones((2, 16)),
    }


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module, tmp_path, monkeypatch):
    # Some write files.
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    known = names()
    if module.__name__.startswith("keras_ether.bank"):
        known["bank"] = keras_ether.AdapterBank(example_model(), capacity=4)
        known["bank"].add("alice")
    tests = doctest.DocTestFinder().find(module, globs=vars(module) | known)
    for test in tests:
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0
