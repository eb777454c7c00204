"""The values of many adapters, stacked: a row for each."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.adapters.adapter import Adapter
from keras_ether.ops.each_example import set_row
from keras_ether.ops.each_example import take_rows
from keras_ether.ops.values import to_numpy
from keras_ether.types import Tensor
from keras_ether.types import Variable

# The row of the base.
BASE = 0


class Stack(keras.layers.Layer):
    """The rows of one layer's vectors, or of the weights of a head's layer.

    Args:
        layer_path: String, structural path of the layer in its model.
        variables: Dictionary from the name of a tensor in an adapter file to
            the variable whose values are stacked.
        rows: Integer, number of rows, which are zeros at first.

    Attributes:
        layer_path: The argument.
        rows: Dictionary from name to a variable of shape `(rows, ...)`.
    """

    def __init__(
        self,
        layer_path: str,
        variables: dict[str, Variable],
        rows: int,
    ) -> None:
        name = layer_path.replace("/", "_") or "model"
        super().__init__(name=f"{name}_rows", dtype="float32")
        self.layer_path = layer_path
        self.rows = {
            name: self.add_weight(
                name=name.replace("/", "_"),
                shape=(rows, *variable.shape),
                initializer="zeros",
                dtype=variable.dtype,
                autocast=False,
            )
            for name, variable in variables.items()
        }
        self.built = True

    def row(self, row: int) -> dict[str, np.ndarray]:
        """The values of a row, NumPy arrays."""
        return {
            name: to_numpy(take_rows(variable, ops.full((1,), row, "int32"))[0])
            for name, variable in self.rows.items()
        }


def fill(stacks: Iterable[Stack], row: int, values: dict[str, Any]) -> None:
    """Sets a row of all stacks; zeros where `values` has none."""
    variables = {n: v for stack in stacks for n, v in stack.rows.items()}
    rows = [
        values.get(name, np.zeros(variable.shape[1:], "float32"))
        for name, variable in variables.items()
    ]
    set_row(list(variables.values()), row, rows)


def factors_of(
    adapter: Adapter, side: str, gathered: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Each example's factors of one side.

    Args:
        adapter: The layer's `Adapter`, which has the method.
        side: `"input"` or `"output"`.
        gathered: Dictionary from a vector's name, such as `"input_u"`, to a
            tensor of shape `(batch, blocks, ...)`.

    Returns:
        `(left, right)`, of shape `(batch, blocks, k, width)`.
    """
    method = adapter.method
    vectors = [gathered[f"{side}_{name}"] for name in method.weights]
    blocks = vectors[0].shape[1]
    # The formulas treat each block separately, whichever example has it.
    left, right = method.factors(
        *(ops.reshape(v, (-1, *v.shape[2:])) for v in vectors)
    )
    shape = (-1, blocks, *left.shape[1:])
    return ops.reshape(left, shape), ops.reshape(right, shape)
