"""Conversion of values to plain Python numbers and NumPy arrays, for files."""

import math
import numbers
import operator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.ops.backend import snapshot
from keras_ether.types import Tensor
from keras_ether.types import Variable


def integer(value: Any) -> int | None:
    """A value as an integer, or `None` if it is not one.

    NumPy's integers are accepted, as are other values that Python accepts as an
    index; booleans are not.
    """
    if _is_boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """A value as a real number, or `None` if it is not one.

    NumPy's are accepted; booleans are not.
    """
    if _is_boolean(value) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: Any) -> float | None:
    """A value as a finite real number, or `None` if it is not one."""
    number = real(value)
    return number if number is not None and math.isfinite(number) else None


def to_numpy(variable: Variable) -> np.ndarray:
    """The value of a variable or tensor, copied to a NumPy array."""
    value = ops.convert_to_tensor(variable)
    if keras.config.backend() == "torch":
        if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
            return ops.convert_to_numpy(value)
        return value.detach().cpu().numpy().copy()
    # NumPy 2 warns if it is asked to copy Keras's variables or TensorFlow's
    # tensors, as `ops.convert_to_numpy` does.
    return np.array(np.asarray(value))


def copy_of(variable: Variable) -> Tensor:
    """The current value of a variable, on its device.

    Later assignments don't change it, and it has no gradient.
    """
    return ops.stop_gradient(snapshot(variable))


def as_array(value: Any) -> Any:
    """A value for a file: variables and tensors become NumPy arrays."""
    is_tensor = isinstance(value, keras.Variable) or ops.is_tensor(value)
    return to_numpy(value) if is_tensor else value


def _is_boolean(value: Any) -> bool:
    # Some frameworks accept their boolean scalars as an index.
    dtype = getattr(value, "dtype", "")
    return isinstance(value, bool) or "bool" in str(dtype)
