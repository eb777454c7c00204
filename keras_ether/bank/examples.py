"""The examples of one call, and the adapter of each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops
from keras import tree

from keras_ether.adapters import per_example
from keras_ether.adapters.adapter import Adapter
from keras_ether.bank.stacks import BASE
from keras_ether.bank.stacks import Stack
from keras_ether.bank.stacks import factors_of
from keras_ether.ops.each_example import take_rows
from keras_ether.ops.each_example import where_each
from keras_ether.ops.row_gradients import scale_gradient
from keras_ether.ops.row_gradients import share_of_own
from keras_ether.types import Factors
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable


class BankExamples:
    """Answers layers for the examples of one call, see `per_example`.

    Args:
        stacks: Dictionary from the id of an `Adapter`, or of a layer of the
            head, to its `Stack`.
        marks: Variable of shape `(rows,)`, 1 for rows in use and NaN for
            others.
        ids: Integer tensor of shape `(batch,)`.
        trained: `None`, `"mean"` or `"sum"`: how the loss of a training call
            is reduced over the batch. Defaults to `None`, for other calls.
        repeated: Whether the model may see each example several times, as in a
            beam search. Defaults to `False`.

    Attributes:
        asked: The ids of the layers of the head that asked for their weights.
    """

    def __init__(
        self,
        stacks: dict[int, Stack],
        marks: Variable,
        ids: Tensor,
        trained: str | None = None,
        repeated: bool = False,
    ) -> None:
        if len(ids.shape) != 1:
            raise ValueError(
                "`adapter_id` must be one integer per example, of shape "
                f"(batch,). Received: shape={tuple(ids.shape)}"
            )
        self.stacks = stacks
        self.repeated = repeated
        self.asked: set[int] = set()
        self.size = ids.shape[0]
        ids = ops.cast(ids, "int32")
        is_row = ops.logical_and(ids >= 0, ids < marks.shape[0])
        self.ids = ops.where(is_row, ids, 0)
        # For an id without a row NaN, and never another adapter's outputs.
        self.is_base = ops.equal(ids, BASE)
        self.mark = ops.where(is_row, take_rows(marks, self.ids), np.nan)
        self.training = trained is not None
        self.scale = None
        if trained == "mean":
            self.scale = share_of_own(self.ids)
        elif trained == "sum":
            self.scale = ops.cast(self.ids != 0, "float32")

    def factors(self, adapter: Adapter, side: str) -> Factors:
        """`(left, right)` of one side, `(batch, blocks, k, width)` each."""
        stack = self.stacks.get(id(adapter))
        if stack is None:
            raise ValueError(
                f"Adapter '{adapter.path}' was not there when the "
                "`AdapterBank` was made. Make a new bank."
            )
        gathered = {
            name.rpartition("/")[2]: self._take(variable)
            for name, variable in stack.rows.items()
            if name.rpartition("/")[2].startswith(side)
        }
        left, right = factors_of(adapter, side, gathered)
        return left * ops.reshape(self.mark, (-1, 1, 1, 1)), right

    def weights_of(self, layer: Layer) -> dict[str, Tensor] | None:
        """A layer's weights by name, with the batch as their first axis.

        `None` for a layer whose weights all examples share.
        """
        stack = self.stacks.get(id(layer))
        if stack is None:
            return None
        self.asked.add(id(layer))
        return {
            name: self._marked(self._take(variable))
            for name, variable in stack.rows.items()
        }

    def choose(
        self,
        layer: Layer,
        each: Any,
        base: Callable[[dict[str, Tensor]], Any],
    ) -> Any:
        """The outputs of `base` for examples of the base, `each` for others.

        Outputs for the base must equal the base's own to the bit, and products
        with many matrices are rounded differently from those with one.

        Args:
            layer: The layer of the head.
            each: Outputs by each example's own weights.
            base: Function from the base's weights, by name, to outputs.
        """
        rows = self.stacks[id(layer)].rows
        row = ops.full((1,), BASE, "int32")
        of_base = base(
            {
                n: ops.stop_gradient(take_rows(v, row)[0])
                for n, v in rows.items()
            }
        )
        return tree.map_structure(
            lambda x, y: where_each(self.is_base, x, y), of_base, each
        )

    def check(self, layer: Layer, inputs: Tensor) -> None:
        """Raises a `ValueError` unless the leading axis is the batch."""
        leading = inputs.shape[0] if len(inputs.shape) else 1
        if None in (leading, self.size) or leading == self.size:
            return
        if self.repeated and leading % self.size == 0:
            return
        raise per_example.NoExamplesError(
            f"The leading axis of the inputs of layer '{layer.path}' must be "
            f"the batch, one example for each of {self.size} adapter ids: each "
            "has an adapter of its own. Received: inputs of shape "
            f"{tuple(inputs.shape)}. Leave the layer out, by `exclude` of "
            "`keras_ether.apply`."
        )

    def _take(self, variable: Variable) -> Tensor:
        values = take_rows(variable, self.ids, self.training)
        if self.scale is None:
            return values
        return scale_gradient(values, self.scale)

    def _marked(self, values: Tensor) -> Tensor:
        mark = ops.reshape(self.mark, (-1,) + (1,) * (len(values.shape) - 1))
        return values * ops.cast(mark, values.dtype)
