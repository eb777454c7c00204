"""Outputs of the runs of a trial: of which examples, and whether they agree."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.bank.examples import parts_of
from keras_ether.ops.values import to_numpy

# Relative errors: of two ways to compute one thing, in float32 and where 16
# bits or integer kernels round it; and there of one way with other neighbours.
FINE, COARSE, NEIGHBOURS = 1e-3, 0.3, 0.05
# Where numbers are rounded, near ties among experts may be decided otherwise
# for so many of the examples.
STRAYS = 0.1
# Places of examples in a batch, or all of them.
Places = np.ndarray | None
ALL = None


def to_numpy_at(outputs: Any, places: Places) -> list[np.ndarray]:
    """The parts of outputs for the examples at `places`."""
    found = []
    for y in parts_of(outputs):
        y = ops.convert_to_tensor(y)
        if places is not ALL:
            y = ops.take(y, places, axis=0)
        if keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(y.dtype)
        ):
            y = ops.cast(y, "float32")
        found.append(to_numpy(y))
    return found


def of_each(
    rows: np.ndarray, outputs: Callable[[int, np.ndarray], list[np.ndarray]]
) -> list[np.ndarray]:
    """The outputs of all examples, each computed with its own row.

    Args:
        rows: Integer array, the row of each example.
        outputs: Function from a row, and from places in the batch, to the
            outputs there. All outputs of all rows might not fit in memory.
    """
    places = np.argsort(rows, kind="stable")
    own = [
        outputs(int(row), places[rows[places] == row])
        for row in np.unique(rows)
    ]
    back = np.argsort(places)
    return [np.concatenate(parts)[back] for parts in zip(*own, strict=True)]


def are_equal(
    found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float
) -> bool:
    """Whether outputs are equal within rounding, example by example."""
    for y, z in zip(found, wanted, strict=True):
        if y.shape != z.shape:
            return False
        if not np.issubdtype(y.dtype, np.floating):
            wrong = np.mean(y != z)
            # Rounding may decide between near ties.
            if wrong > (0.5 if tolerance > FINE else 0.0):
                return False
            continue
        finite = np.isfinite(y)
        if not np.array_equal(finite, np.isfinite(z)):
            return False
        error = np.where(finite, y - np.where(finite, z, 0), 0)
        rows = (len(error), math.prod(error.shape[1:]))
        error = error.reshape(rows)
        size = np.sqrt(np.mean(np.square(z[finite]))) if finite.any() else 0
        of_example = np.sqrt(np.mean(np.square(error), axis=1))
        strays = np.mean(of_example > tolerance * size)
        if strays > (STRAYS if tolerance > FINE else 0.0):
            return False
    return True
