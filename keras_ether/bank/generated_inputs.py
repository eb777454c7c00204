"""Inputs for the trial of a model, from the shapes and dtypes of its inputs."""

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_ether.ops.traced import no_gradient
from keras_ether.types import Model

# Of axes of unknown size: short for models with a longest sequence, long for
# images.
LENGTHS = (8, 64)


def inputs_for(base: Model, symbols: Any, size: int) -> Any:
    """Generated inputs of `size` examples that a model takes, or `None`."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        inputs = generated_inputs(symbols, size, length, rng)
        try:
            with keras.StatelessScope(), no_gradient():
                base(tree.map_structure(_two, inputs), training=False)
        except Exception:
            # The model may not take this length.
            continue
        return inputs
    return None


def generated_inputs(
    symbols: Any, size: int, length: int, rng: np.random.Generator
) -> Any:
    """Generated inputs of a model.

    Args:
        symbols: The symbolic inputs, with `shape` and `dtype`.
        size: Integer, the number of examples.
        length: Integer, the length of axes of unknown size.
        rng: NumPy generator.
    """

    def invent(x: Any) -> np.ndarray:
        shape = (size, *(length if s is None else s for s in x.shape[1:]))
        dtype = keras.backend.standardize_dtype(x.dtype)
        if keras.backend.is_float_dtype(dtype):
            return rng.normal(size=shape).astype("float32")
        # Ids of any vocabulary, and masks that keep most entries.
        return (rng.random(shape) < 0.75).astype(dtype)

    return tree.map_structure(invent, symbols)


def _two(x: np.ndarray) -> Any:
    return keras.ops.convert_to_tensor(x[:2])
