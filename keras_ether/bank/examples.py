"""The examples of one call, and the adapter of each."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.adapters.adapter import Adapter
from keras_ether.bank.inputs import differ
from keras_ether.bank.inputs import leading_size
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import Asked
from keras_ether.bank.structure import Stack
from keras_ether.ops.each_example import take_rows
from keras_ether.ops.each_example import where_each
from keras_ether.ops.traced import after
from keras_ether.ops.traced import same_leading_axis
from keras_ether.types import Factors
from keras_ether.types import Layer
from keras_ether.types import Tensor
from keras_ether.types import Variable


class BankExamples:
    """The factors and weights for the examples of one call, see `per_example`.

    Args:
        stacks: Dictionary from the id of an `Adapter`, or of a layer of the
            head, to its `Stack`.
        ids: Integer tensor of shape `(batch,)`.
        rows: Integer, number of rows of the stacks.
        repeated: Whether the model may see each example several times, as in a
            beam search. Defaults to `False`.
        row: The row of each example, or `None` for the one that its id names.
            Defaults to `None`.

    Attributes:
        asked: How often each adapter and layer of the head was looked up.
        axes: The sizes of inner axes of the inputs of these layers.
        row: Int32 tensor of shape `(batch,)`, the row of each example.
    """

    def __init__(
        self,
        stacks: dict[int, Stack],
        ids: Tensor,
        rows: int,
        repeated: bool = False,
        row: Tensor | None = None,
    ) -> None:
        dtype = keras.backend.standardize_dtype(ids.dtype)
        if len(ids.shape) != 1 or not keras.backend.is_int_dtype(dtype):
            raise ValueError(
                "`adapter_id` must be one integer per example, of shape "
                f"(batch,). Received: shape={tuple(ids.shape)}, dtype={dtype}"
            )
        self.stacks = stacks
        self.repeated = repeated
        self.asked: Counter[Asked] = Counter()
        self.axes: set[int] = set()
        self.ids = ids
        self.size = ids.shape[0]
        narrow = ops.cast(ids, "int32")
        fits = ops.equal(ops.cast(narrow, dtype), ids)
        self.narrow = ops.where(ops.logical_and(fits, narrow >= 0), narrow, -1)
        named = ops.where(self.narrow >= 0, ops.mod(self.narrow, rows), 0)
        self.row = named if row is None else row

    def are_valid(self, current: Variable) -> Tensor:
        """Whether each id is that of its row, by a variable of these ids."""
        return ops.equal(take_rows(current, self.row), self.narrow)

    def factors(self, adapter: Adapter, side: str) -> Factors:
        """`(left, right)` of one side, `(batch, blocks, k, width)` each."""
        stack = self.stacks.get(id(adapter))
        if stack is None:
            raise ValueError(
                f"Adapter '{adapter.path}' was added after the `AdapterBank` "
                "was made. Make a new bank."
            )
        self.asked[stack.layer_path, side] += 1
        method = adapter.method
        vectors = [
            take_rows(stack.rows[f"{side}_{name}"], self.row)
            for name in method.weights
        ]
        blocks = vectors[0].shape[1]
        # The formulas treat each block separately, whichever example has it.
        left, right = method.factors(
            *(ops.reshape(v, (-1, *v.shape[2:])) for v in vectors)
        )
        shape = (-1, blocks, *left.shape[1:])
        return ops.reshape(left, shape), ops.reshape(right, shape)

    def weights_of(self, layer: Layer) -> dict[str, Tensor] | None:
        """A layer's weights by name, with the batch as their first axis.

        `None` for a layer whose weights all examples share.
        """
        stack = self.stacks.get(id(layer))
        if stack is None:
            return None
        self.asked[stack.layer_path, ""] += 1
        return {
            name: take_rows(variable, self.row)
            for name, variable in stack.rows.items()
        }

    def choose(
        self,
        layer: Layer,
        each: Any,
        base: Callable[[dict[str, Tensor]], Any],
    ) -> Any:
        """The outputs of `base` for examples of the base, `each` for others.

        Outputs for the base must equal the base's own outputs bit for bit, but
        products with many matrices are rounded differently from a product with
        one.
        """
        row = ops.full((1,), BASE, "int32")
        of_base = {
            name: ops.stop_gradient(take_rows(variable, row)[0])
            for name, variable in self.stacks[id(layer)].rows.items()
        }
        is_base = ops.equal(self.row, BASE)
        return _with_logits(
            lambda x, y: where_each(is_base, x, y), base(of_base), each
        )

    def check(self, layer: Layer, inputs: Tensor) -> Tensor:
        """The inputs of a layer, whose leading axis has to be the batch."""
        leading = leading_size(inputs)
        self.axes.update(size for size in inputs.shape[1:] if size is not None)
        if None in (leading, self.size):
            if self.repeated:
                return inputs
            return same_leading_axis(inputs, ops.shape(self.ids)[0])
        if leading == self.size or (self.repeated and leading % self.size == 0):
            return inputs
        raise per_example.NoExamplesError(
            f"The leading axis of the inputs of layer '{layer.path}' must be "
            f"the batch, with one example for each of {self.size} adapter ids. "
            f"Received: inputs of shape {tuple(inputs.shape)}. Leave the layer "
            "out with `exclude` of `keras_ether.apply`."
        )

    def check_outputs(self, outputs: Any) -> None:
        """Raises a `ValueError` for outputs without one part per example."""
        for y in parts_of(outputs):
            if differ(leading_size(y), self.size):
                raise per_example.NoExamplesError(
                    "Every output of a bank's base must have the batch as its "
                    f"first axis. Received: {self.size} examples and an output "
                    f"of shape {tuple(y.shape)}"
                )

    def marked(self, outputs: Any, current: Variable) -> Any:
        """Outputs that are NaN, or the lowest integer, for an invalid id.

        The ids of rows are read here, after all values, so an id that ended in
        between is invalid.
        """
        with after(parts_of(outputs)):
            valid = self.are_valid(current)

        def where_valid(y: Tensor) -> Tensor:
            each = ops.reshape(valid, (-1,) + (1,) * (len(y.shape) - 1))
            return ops.where(each, y, ops.cast(_filling(y), y.dtype))

        def mark(y: Tensor | None) -> Tensor | None:
            if y is None:
                return None
            found = _with_logits(where_valid, y)
            internals.copy_mask(y, found)
            return found

        return tree.map_structure(mark, outputs)


def _with_logits(choose: Callable[..., Tensor], *outputs: Tensor) -> Tensor:
    """What `choose` makes of outputs; its logits are chosen in the same way."""
    chosen = choose(*outputs)
    logits = [internals.logits_of(y) for y in outputs]
    if all(x is not None for x in logits):
        internals.set_logits(chosen, choose(*logits))
    return chosen


def check_markable(outputs: Any) -> None:
    """Raises a `ValueError` for outputs that `marked` can't mark."""
    for y in parts_of(outputs):
        _filling(y)


def parts_of(outputs: Any) -> list[Tensor]:
    """The tensors of nested outputs, some of which may be `None`."""
    return [y for y in tree.flatten(outputs) if y is not None]


def _filling(y: Tensor) -> float | int:
    dtype = keras.backend.standardize_dtype(y.dtype)
    if keras.backend.is_float_dtype(dtype):
        return np.nan
    if dtype.startswith("int"):
        return int(np.iinfo(dtype).min)
    raise per_example.NoExamplesError(
        "For an id without an adapter, a bank returns NaN or the lowest "
        f"integer, which dtype {dtype} does not have. The model must return "
        "floats or signed integers."
    )
