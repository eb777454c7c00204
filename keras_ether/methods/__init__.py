"""What a method trains, how it starts, its formula; and the table of methods.

Methods know `keras_ether.ops` and nothing of layers or models. `register` adds
one of your own.
"""

from keras_ether.methods import baselines
from keras_ether.methods import ether
from keras_ether.methods.registry import METHODS
from keras_ether.methods.registry import SIDES
from keras_ether.methods.registry import Method
from keras_ether.methods.registry import get
from keras_ether.methods.registry import register

__all__ = [
    "METHODS",
    "SIDES",
    "Method",
    "baselines",
    "ether",
    "get",
    "register",
]
