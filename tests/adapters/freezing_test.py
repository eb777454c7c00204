"""Layers that one adapted model freezes, and another one keeps trainable."""

import itertools

import keras
import pytest

import keras_ether
from keras_ether.surgery import compiled_state
from tests import checks

pytestmark = checks.WITHOUT_ADVICE
ORDERS = list(itertools.permutations(["one", "two", "three"]))
ENDS = {
    "one": keras_ether.remove,
    "two": keras_ether.merge,
    "three": keras_ether.remove,
}


def sharing(frozen_before=False):
    """A part, and models around it by name."""
    part = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(8, name="dense"),
            keras.layers.BatchNormalization(name="norm"),
        ],
        name="part",
    )
    if frozen_before:
        part.get_layer("dense").trainable = False
        part.get_layer("norm").gamma.trainable = False
    models = {}
    for name in ENDS:
        top = keras.layers.Dense(8, name=f"top_of_{name}")
        models[name] = keras.Sequential([keras.Input((8,)), part, top])
    return part, models


def apply(model, name, keeping):
    keras_ether.apply(
        model,
        targets=[f"top_of_{name}"],
        trainable=["part"] if name in keeping else None,
    )


def flags(part):
    return (
        [layer.trainable for layer in part.layers],
        [layer.get_config()["trainable"] for layer in part.layers],
        [v.trainable for v in part.variables],
    )


def flags_of(keeping, frozen_before):
    """The flags that a model gives the part which is adapted alone."""
    part, models = sharing(frozen_before)
    apply(models["one"], "one", ["one"] if keeping else [])
    return flags(part)


@pytest.mark.parametrize("frozen_before", [False, True])
@pytest.mark.parametrize("keeping", [["one"], ["one", "three"]], ids=str)
def test_a_layer_trains_as_long_as_a_model_keeps_it_trainable(
    keeping, frozen_before
):
    """And is frozen as long as another one contains it, in any order."""
    expected = {k: flags_of(k, frozen_before) for k in (False, True)}
    assert expected[False][2] == [False] * 6
    part, models = sharing(frozen_before)
    before = flags(part)
    for first, last in itertools.product(ORDERS, ORDERS[::2]):
        adapted = set()
        for name in first:
            apply(models[name], name, keeping)
            adapted.add(name)
            assert flags(part) == expected[not adapted.isdisjoint(keeping)]
        for name in last:
            ENDS[name](models[name])
            adapted.remove(name)
            if adapted:
                assert flags(part) == expected[not adapted.isdisjoint(keeping)]
        assert flags(part) == before


@pytest.mark.parametrize("keeping", [["one"], ["two"]], ids=str)
def test_an_error_half_way_leaves_all_flags(keeping, monkeypatch):
    _, models = sharing()
    outer = keras.Sequential([keras.Input((8,)), *models.values()])
    apply(models["one"], "one", keeping)

    def fails(act):
        before = checks.state(outer)
        with monkeypatch.context() as patched:
            patched.setattr(compiled_state, "reset", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                act()
        checks.unchanged(outer, before)

    fails(lambda: apply(models["two"], "two", keeping))
    apply(models["two"], "two", keeping)
    fails(lambda: keras_ether.remove(models["one"]))
    fails(lambda: keras_ether.merge(models["two"]))


def test_a_layer_trains_in_a_part_that_another_model_froze():
    part, models = sharing()
    apply(models["one"], "one", [])
    apply(models["two"], "two", ["two"])
    keras_ether.apply(
        models["three"],
        targets=["top_of_three"],
        trainable=["part/dense"],
    )
    keras_ether.remove(models["two"])
    assert part.trainable_variables == part.get_layer("dense").variables
    keras_ether.remove(models["three"])
    assert part.trainable_variables == []


def test_a_copy_is_frozen_as_its_original():
    part, models = sharing()
    before = flags(part)
    apply(models["one"], "one", ["one"])
    apply(models["two"], "two", ["one"])
    twin = keras_ether.copy(models["two"])
    copied = twin.get_layer("part")
    assert flags(copied) == flags(part)
    keras_ether.remove(twin)
    assert flags(copied) == before
