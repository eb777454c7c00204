"""Changes, transactions and owners."""

import gc

import keras
import numpy as np
import pytest

from keras_ether.adapters import changes
from keras_ether.ops.values import to_numpy

pytestmark = pytest.mark.once


class Speaking(keras.layers.Layer):
    def __init__(self, word="hello"):
        super().__init__()
        self.word = word

    def say(self, more=""):
        return self.word + more


class Loud(Speaking):
    def say(self, more=""):
        return super().say(more) + "!"


@pytest.fixture
def layer():
    return Speaking()


def shout(original, *args):
    return original(*args).upper()


def shouting(layer):
    return changes.Method(layer, "say", shout)


def test_method_of_the_class_and_back(layer):
    change = shouting(layer)
    change.undo()
    assert layer.say(" you") == "hello you"
    change.do(), change.do()
    assert layer.say(" you") == "HELLO YOU"
    change.undo(), change.undo()
    assert layer.say(" you") == "hello you"
    assert "say" not in vars(layer)


def test_method_of_the_instance_and_back(layer):
    def own():
        return "mine"

    vars(layer)["say"] = own
    change = shouting(layer)
    change.do()
    assert layer.say() == "MINE"
    change.undo()
    assert layer.say is own


def test_method_behind_another_that_was_put_in_front_of_it(layer):
    first = shouting(layer)
    second = changes.Method(layer, "say", lambda original: original() + "?")
    first.do(), second.do()
    assert layer.say() == "HELLO?"
    first.undo()
    second.undo()
    assert layer.say() == "HELLO"


def test_method_of_a_class_that_changes_meanwhile(layer):
    change = shouting(layer)
    change.do()
    layer.__class__ = Loud
    assert layer.say(" you") == "HELLO YOU!"
    change.undo()
    assert layer.say(" you") == "hello you!"


def test_configuration_that_keras_makes_by_itself(layer):
    class Configured(keras.layers.Layer):
        def __init__(self, units):
            super().__init__()
            self.units = units

    layer = Configured(3)
    expected = layer.get_config()
    changes.Method(layer, "get_config", lambda original: original()).do()
    assert layer.get_config() == expected


def test_attributes_that_are_set_and_deleted(layer):
    for value in ("other", changes.MISSING):
        change = changes.Attribute(layer, "word", value)
        change.do()
        assert vars(layer).get("word", changes.MISSING) == value
        change.undo()
        assert layer.word == "hello"


@pytest.mark.parametrize("size", [1, 2**20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_values_come_back_to_the_bit(dtype, size):
    values = np.arange(size) % 100
    one, other = (
        keras.Variable(values, dtype=dtype, trainable=False) for _ in range(2)
    )
    before = to_numpy(one)
    with pytest.raises(KeyError), changes.all_or_none() as made:
        made.assign(one, np.zeros(size))
        made.assign(other, lambda: np.ones(size))
        made.assign(one, np.ones(size))
        assert to_numpy(other).max() == 1
        raise KeyError
    for variable in (one, other):
        np.testing.assert_array_equal(to_numpy(variable), before)


def test_what_failed_is_undone_last_to_first(layer):
    with pytest.raises(ZeroDivisionError), changes.all_or_none() as made:
        made.set(layer, "word", "one")
        made.make(shouting(layer))
        made.set(layer, "word", "two")
        assert layer.say() == "TWO"
        made.assign(keras.Variable(1.0), lambda: 1 / 0)
    assert layer.say() == "hello"


def hold(layer, owner, name="loud"):
    owner.adapted.add(layer)
    with changes.all_or_none() as made:
        made.hold(layer, name, owner, lambda: [shouting(layer)])


def release(layer, owners, name="loud"):
    with changes.all_or_none() as made:
        made.release(layer, name, owners)


def test_the_last_owner_undoes(layer):
    one, two = changes.Owner(), changes.Owner()
    hold(layer, one), hold(layer, two), hold(layer, two)
    assert changes.held(layer, "loud").owners == {one, two}
    release(layer, {one})
    assert layer.say() == "HELLO"
    release(layer, {one})
    assert layer.say() == "HELLO"
    release(layer, {two})
    assert layer.say() == "hello"
    assert changes.RECORD not in vars(layer)


def test_an_owner_whose_layers_are_gone_holds_nothing(layer):
    one, two = changes.Owner(), changes.Owner()
    other = Speaking()
    with changes.all_or_none() as made:
        one.adapted.add(other)
        made.hold(layer, "loud", one, lambda: [shouting(layer)])
    hold(layer, two)
    del other
    gc.collect()
    release(layer, {two})
    assert layer.say() == "hello"


def test_releasing_that_failed_is_undone(layer):
    one = changes.Owner()
    hold(layer, one), hold(layer, one, "twice")
    assert layer.say() == "HELLO"
    with pytest.raises(KeyError), changes.all_or_none() as made:
        made.release(layer, "twice")
        made.release(layer, "loud")
        assert layer.say() == "hello"
        raise KeyError
    assert layer.say() == "HELLO"
    assert changes.held(layer, "loud").owners == {one}
    release(layer, None, "twice")
    release(layer, None)
    assert layer.say() == "hello"
