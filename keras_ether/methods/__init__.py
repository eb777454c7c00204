"""Methods: trained weights, initial values and formula of each.

`register` adds your own method. Methods depend on `keras_ether.ops`, not on
layers or models.
"""

from keras_ether.methods import baselines as baselines
from keras_ether.methods import ether as ether
from keras_ether.methods.registry import METHODS as METHODS
from keras_ether.methods.registry import SIDES as SIDES
from keras_ether.methods.registry import Method
from keras_ether.methods.registry import get
from keras_ether.methods.registry import register
from keras_ether.methods.strength import LEARNED as LEARNED
from keras_ether.methods.strength import rate_multiplier as rate_multiplier
from keras_ether.methods.strength import with_strength as with_strength

# The interface; the package's own modules use the other names too.
__all__ = ["Method", "get", "register"]
