"""The inputs of a bank's model and of its base, and generated ones.

The generated ones are for a trial, from the shapes and dtypes of the base's
symbolic inputs.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.ops.traced import no_gradient
from keras_ether.ops.traced import same_leading_axis
from keras_ether.types import Model
from keras_ether.types import Tensor

# The keys of the inputs of a bank's model, of which the second one is for a
# base that takes no dictionary.
ADAPTER_ID = "adapter_id"
INPUTS = "inputs"
# Of axes of unknown size: short for models with a longest sequence, long for
# images.
LENGTHS = (8, 64)


def base_inputs(base: Model) -> Any:
    """The symbolic inputs of a model as it takes them, or `None`."""
    if isinstance(base, keras.Sequential):
        inputs = base.inputs
        return inputs[0] if inputs else None
    if not getattr(base, "inputs", None):
        # The inputs that a subclassed model was built for.
        shape = (base.get_build_config() or {}).get("input_shape")
        is_one = isinstance(shape, tuple | list) and not any(
            isinstance(size, tuple | list) for size in shape
        )
        return keras.KerasTensor(shape, name=INPUTS) if is_one else None
    struct = internals.inputs_struct(base)
    return dict(struct) if isinstance(struct, dict) else struct


def takes(base: Model, name: str) -> bool:
    """Whether a model takes a dictionary with this key."""
    struct = base_inputs(base)
    return isinstance(struct, dict) and name in struct


def run_base(base: Model, inputs: Any, training: bool | Tensor | None) -> Any:
    """A model's outputs, in the mode in which Keras would run it alone.

    On JAX, `training` does not reach a layer through the call around it.
    """
    if "training" not in base.call_signature_parameters:
        # Keras also trains such a model in inference mode.
        training = False
    return base(inputs, training=training)


def generated_inputs(base: Model, size: int) -> Any:
    """Generated inputs of `size` examples that a model takes, or `None`."""
    symbols = base_inputs(base)
    if symbols is None:
        return None
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        inputs = tree.map_structure(
            functools.partial(_invented, size=size, length=length, rng=rng),
            symbols,
        )
        two = tree.map_structure(lambda x: ops.convert_to_tensor(x[:2]), inputs)
        try:
            with keras.StatelessScope(), no_gradient():
                base(two, training=False)
        except Exception:
            # The model may not take this length.
            continue
        return inputs
    return None


def signature(base: Model) -> list | None:
    """What `export` of a bank's model takes, if the base's inputs are known."""
    symbols = base_inputs(base)
    if symbols is None:
        return None
    if not isinstance(symbols, dict):
        symbols = {INPUTS: symbols}
    ids = keras.KerasTensor((None,), "int32", name=ADAPTER_ID)
    return [
        tree.map_structure(
            lambda x: keras.InputSpec(
                shape=(None, *x.shape[1:]), dtype=x.dtype, name=x.name
            ),
            {**symbols, ADAPTER_ID: ids},
        )
    ]


def preprocessed(base: Model, x: Any) -> Any:
    """The inputs of a model, from the raw inputs of a task."""
    preprocessor = getattr(base, "preprocessor", None)
    struct = base_inputs(base)
    is_ready = (
        isinstance(x, dict)
        and isinstance(struct, dict)
        and struct.keys() <= x.keys()
    )
    if preprocessor is None or is_ready:
        return x
    x, _, _ = keras.utils.unpack_x_y_sample_weight(preprocessor(x))
    return tree.map_structure(ops.convert_to_numpy, x)


def leading_size(x: Any) -> Any:
    """The size of a tensor's first axis, 1 of a scalar, `None` if unknown."""
    return x.shape[0] if len(x.shape) else 1


def differ(size: Any, other: Any) -> bool:
    """Whether two sizes are known and differ."""
    return None not in (size, other) and size != other


def check_size(ids: Any, examples: Any) -> None:
    """Raises a `ValueError` unless there is an id for each example."""
    if differ(ids, examples):
        raise ValueError(
            "`adapter_id` must have one id for each example. Received: "
            f"{ids} ids for {examples} examples"
        )


def one_for_each(ids: Tensor, x: Tensor) -> Tensor:
    """The ids, one for each example of an input."""
    size = leading_size(x)
    if None in (ids.shape[0], size):
        return same_leading_axis(ids, ops.shape(x)[0])
    check_size(ids.shape[0], size)
    return ids


def _invented(
    x: Any, size: int, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Values of `size` examples for one symbolic input."""
    shape = (size, *(length if s is None else s for s in x.shape[1:]))
    dtype = keras.backend.standardize_dtype(x.dtype)
    if keras.backend.is_float_dtype(dtype):
        return rng.normal(size=shape).astype("float32")
    # Ids of any vocabulary, and masks that keep most entries.
    return (rng.random(shape) < 0.75).astype(dtype)
