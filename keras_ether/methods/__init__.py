"""Methods: trained weights, start and formula of each, and their table.

Methods depend on `keras_ether.ops`, not on layers or models. `register` adds
one of your own.
"""

from keras_ether.methods import baselines
from keras_ether.methods import ether
from keras_ether.methods.registry import METHODS
from keras_ether.methods.registry import SIDES
from keras_ether.methods.registry import Method
from keras_ether.methods.registry import are_thin_and_apart
from keras_ether.methods.registry import get
from keras_ether.methods.registry import register
from keras_ether.methods.registry import starts_at_identity
from keras_ether.methods.strength import LEARNED
from keras_ether.methods.strength import rate_multiplier
from keras_ether.methods.strength import with_strength

__all__ = [
    "LEARNED",
    "METHODS",
    "SIDES",
    "Method",
    "are_thin_and_apart",
    "baselines",
    "ether",
    "get",
    "rate_multiplier",
    "register",
    "starts_at_identity",
    "with_strength",
]
