"""Methods: trained weights, initial values and formula of each.

`register` adds your own method. Methods depend on `keras_ether.ops`, not on
layers or models.
"""

from keras_ether.methods import baselines
from keras_ether.methods import ether
from keras_ether.methods.registry import METHODS
from keras_ether.methods.registry import SIDES
from keras_ether.methods.registry import Method
from keras_ether.methods.registry import get
from keras_ether.methods.registry import register
from keras_ether.methods.strength import LEARNED
from keras_ether.methods.strength import rate_multiplier
from keras_ether.methods.strength import with_strength

__all__ = [
    "LEARNED",
    "METHODS",
    "SIDES",
    "Method",
    "baselines",
    "ether",
    "get",
    "rate_multiplier",
    "register",
    "with_strength",
]
