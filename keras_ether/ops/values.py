"""Numbers and values as plain Python and NumPy have them, for any file."""

import math
import numbers
import operator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.types import Variable


def integer(value: Any) -> int | None:
    """The integer that a value is, or `None` if it is none.

    NumPy's integers are, and whatever else Python takes as an index; a boolean
    is not.
    """
    if _is_boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """The real number that a value is, or `None` if it is none.

    NumPy's are; a boolean is not.
    """
    if _is_boolean(value) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: Any) -> float | None:
    """The finite real number that a value is, or `None` if it is none."""
    number = real(value)
    return number if number is not None and math.isfinite(number) else None


def to_numpy(variable: Variable) -> np.ndarray:
    """The value of a variable or tensor, an array of its own."""
    value = ops.convert_to_tensor(variable)
    if keras.config.backend() == "torch":
        return ops.convert_to_numpy(value)
    # NumPy 2 warns of Keras's variables and of TensorFlow's tensors if it is
    # asked for a copy of them, and `ops.convert_to_numpy` does.
    return np.array(np.asarray(value))


def settled(value: Any) -> Any:
    """A value to be written to a file: never a variable or tensor."""
    is_tensor = isinstance(value, keras.Variable) or ops.is_tensor(value)
    return to_numpy(value) if is_tensor else value


def _is_boolean(value: Any) -> bool:
    # Some frameworks take their boolean scalars as an index.
    dtype = getattr(value, "dtype", "")
    return isinstance(value, bool) or "bool" in str(dtype)
