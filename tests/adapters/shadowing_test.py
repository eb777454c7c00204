import keras
import pytest

from keras_ether.adapters import shadowing


def shout(original, *args):
    return original(*args).upper()


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


def test_method_of_the_class_and_back(layer):
    before = dict(vars(layer))
    shadowing.shadow(layer, "say", shout)
    assert layer.say(" you") == "HELLO YOU"
    assert shadowing.is_shadowed(layer, "say")
    assert Speaking().say() == "hello"
    shadowing.restore(layer, "say")
    assert layer.say() == "hello"
    assert vars(layer) == before


def test_method_of_the_instance_and_back(layer):
    """Keras binds some methods to each layer, `quantize` among them."""
    own = layer.quantize
    shadowing.shadow(layer, "quantize", lambda original: original)
    assert layer.quantize() is own
    shadowing.restore(layer, "quantize")
    assert layer.quantize is own


def test_twice_is_the_last(layer):
    shadowing.shadow(layer, "say", lambda original: "first")
    shadowing.shadow(layer, "say", shout)
    assert layer.say() == "HELLO"
    shadowing.restore(layer, "say")
    shadowing.restore(layer, "say")
    assert layer.say() == "hello"


def test_several_methods(layer):
    shadowing.shadow(layer, "say", shout)
    shadowing.shadow(layer, "get_config", lambda original: 1)
    shadowing.restore(layer, "say")
    assert (layer.say(), layer.get_config()) == ("hello", 1)
    assert not shadowing.is_shadowed(layer, "say")


def test_class_that_changes_meanwhile(layer):
    shadowing.shadow(layer, "say", shout)
    layer.__class__ = Loud
    assert layer.say() == "HELLO!"


def test_configuration_that_keras_makes_by_itself(layer):
    """Which it does only for layers with its own `get_config`."""
    expected = layer.get_config()
    assert expected["word"] == "hello"
    shadowing.shadow(layer, "get_config", lambda original: original())
    assert layer.get_config() == expected
