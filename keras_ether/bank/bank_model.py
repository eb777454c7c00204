"""The model of a bank, which takes an adapter's id for each example."""

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.bank import row_updates
from keras_ether.bank.examples import BankExamples
from keras_ether.bank.names import ADAPTER_ID
from keras_ether.bank.names import INPUTS
from keras_ether.bank.stacks import Stack
from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Shape
from keras_ether.types import Tensor
from keras_ether.types import Variable


class BankModel(keras.Model):
    """Computes each example with the adapter that its `adapter_id` names.

    `keras_ether.AdapterBank` makes it, as its attribute `model`.

    Args:
        base: The adapted model. It is shared, not copied.
        stacks: Dictionary from an `Adapter`, or a layer of the head, to its
            `Stack`.
        rows: Integer, number of rows of the stacks.
    """

    def __init__(
        self, base: Model, stacks: dict[Layer, Stack], rows: int
    ) -> None:
        super().__init__(name=f"{base.name}_bank", dtype=base.dtype_policy)
        self.base = base
        self.stacks = list(stacks.values())
        self.marks = self.add_weight(
            name="marks",
            shape=(rows,),
            initializer=lambda shape, dtype: keras.ops.array(
                [1.0] + [np.nan] * (shape[0] - 1), dtype
            ),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self.built = True
        # Hidden from Keras's trackers.
        self.__dict__["_adapters"] = {
            owner: stack for owner, stack in stacks.items()
        }
        self.__dict__["_stack_of"] = {
            id(owner): stack for owner, stack in stacks.items()
        }
        self.__dict__["_loss_over_batch"] = "mean"

    def call(
        self,
        inputs: dict[str, Any],
        training: bool | Tensor | None = None,
    ) -> Any:
        trained = self._loss_over_batch if training else None
        return self.call_for(inputs, trained)[0]

    def call_for(
        self, inputs: dict[str, Any], trained: str | None = None
    ) -> tuple[Any, BankExamples]:
        """The outputs, and the `BankExamples` that answered the layers."""
        self.check_base()
        ids, inputs = self._split(inputs)
        examples = self.examples(ids, trained)
        with per_example.computing_for(examples):
            return self.base(inputs), examples

    def examples(
        self, ids: Tensor, trained: str | None = None, repeated: bool = False
    ) -> BankExamples:
        """The object that answers layers for examples with these ids."""
        ids = keras.ops.convert_to_tensor(ids)
        return BankExamples(self._stack_of, self.marks, ids, trained, repeated)

    def check_base(self) -> None:
        """Raises a `ValueError` if the base has other adapters now."""
        layers = internals.everything_in(self.base)
        there = {id(layer) for layer in layers}
        for owner, stack in self._adapters.items():
            if id(owner) not in there:
                raise ValueError(
                    f"Layer '{stack.layer_path}' of model '{self.base.name}' "
                    "no longer has the adapter that it had when the "
                    "`AdapterBank` was made: it was merged or removed since. "
                    "Make a new bank."
                )

    def _split(self, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The ids, and the inputs in the form in which the base takes them."""
        if not isinstance(inputs, dict) or ADAPTER_ID not in inputs:
            shown = sorted(inputs) if isinstance(inputs, dict) else type(inputs)
            raise ValueError(
                f"The model of an `AdapterBank` takes a dictionary with "
                f"'{ADAPTER_ID}', one integer per example, and the inputs of "
                f"'{self.base.name}', under the key '{INPUTS}' if they are not "
                f"a dictionary. Received: {shown}"
            )
        inputs = dict(inputs)
        ids = inputs.pop(ADAPTER_ID)
        if inputs.keys() == {INPUTS} and not self._base_takes(INPUTS):
            inputs = inputs[INPUTS]
        return ids, inputs

    def _base_takes(self, name: str) -> bool:
        struct = base_inputs(self.base)
        return isinstance(struct, dict) and name in struct

    # The base's own vectors and head train in the base, but not here.

    @property
    def trainable_variables(self) -> list[Variable]:
        return [v for stack in self.stacks for v in stack.trainable_variables]

    @property
    def trainable_weights(self) -> list[Variable]:
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[Variable]:
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trained]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.compile`.

        The optimizer leaves rows that no example of a batch names unchanged,
        moments included. Where the loss is a mean over the batch, Keras's
        default, a row's gradient is that of the mean over its own examples, as
        if the adapter were trained alone.
        """
        super().compile(*args, **kwargs)
        loss = kwargs.get("loss", args[1] if len(args) > 1 else None)
        self.__dict__["_loss_over_batch"] = _over_batch(loss)
        row_updates.hold_still(self.optimizer, self.marks.shape[0])

    def make_train_function(self, force: bool = False) -> Callable:
        self.check_base()
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Callable:
        self.check_base()
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Callable:
        self.check_base()
        return super().make_predict_function(force)

    def export(
        self,
        filepath: str | os.PathLike,
        *args: Any,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """See `keras.Model.export`. The signature includes `adapter_id`."""
        if input_signature is None:
            specs = self.input_specs(
                lambda shape, dtype, name: keras.InputSpec(
                    shape=shape, dtype=dtype, name=name
                )
            )
            input_signature = None if specs is None else [specs]
        return super().export(
            filepath, *args, input_signature=input_signature, **kwargs
        )

    def input_specs(
        self, make: Callable[[Shape, str, str], Any], batch: int | None = None
    ) -> dict[str, Any] | None:
        """Specifications of the inputs, made by a function.

        Args:
            make: Function `(shape, dtype, name)` that returns one.
            batch: Integer or `None`, the leading axis of each.

        Returns:
            A dictionary, or `None` if the base's inputs are unknown.
        """
        struct = base_inputs(self.base)
        if struct is None:
            return None
        specs = tree.map_structure(
            lambda x: make((batch, *x.shape[1:]), x.dtype, x.name), struct
        )
        if not isinstance(specs, dict):
            specs = {INPUTS: specs}
        return {**specs, ADAPTER_ID: make((batch,), "int32", ADAPTER_ID)}

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be saved as a whole: "
            "`bank.save(name, file)` saves an adapter, `bank.model.export` "
            "makes a SavedModel of all."
        )

    def get_config(self) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be made from a configuration. "
            "Make a bank from a copy of the adapted model."
        )


def base_inputs(base: Model) -> Any:
    """The symbolic inputs of a model as it takes them, or `None`."""
    if isinstance(base, keras.Sequential):
        inputs = base.inputs
        return inputs[0] if inputs else None
    if not getattr(base, "inputs", None):
        return None
    struct = internals.inputs_struct(base)
    return dict(struct) if isinstance(struct, dict) else struct


def _over_batch(loss: Any) -> str:
    """`"sum"` if the losses are sums over the batch, else `"mean"`."""
    found = {
        getattr(part, "reduction", None)
        for part in tree.flatten(loss)
        if isinstance(part, keras.losses.Loss)
    }
    if "sum" in found and len(found) > 1:
        raise ValueError(
            "The losses must either all be sums over the batch or all be "
            "means, to give each adapter the gradient that it has alone. "
            f"Received: reductions {sorted(map(str, found))}"
        )
    return "sum" if found == {"sum"} else "mean"
