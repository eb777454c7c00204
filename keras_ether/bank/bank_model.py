"""The model of a bank, which takes an adapter's id for each example."""

import os
import weakref
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.bank import heads
from keras_ether.bank import step as steps
from keras_ether.bank.access import Access
from keras_ether.bank.alterations import Alterations
from keras_ether.bank.certificates import CALL
from keras_ether.bank.certificates import TRAINING
from keras_ether.bank.certificates import Certificates
from keras_ether.bank.examples import BankExamples
from keras_ether.bank.inputs import ADAPTER_ID
from keras_ether.bank.inputs import INPUTS
from keras_ether.bank.inputs import check_size
from keras_ether.bank.inputs import one_for_each
from keras_ether.bank.inputs import run_base
from keras_ether.bank.inputs import signature
from keras_ether.bank.inputs import takes
from keras_ether.bank.loops import Loops
from keras_ether.bank.named_rows import NamedRows
from keras_ether.bank.rows import NO_ID
from keras_ether.bank.rows import Rows
from keras_ether.bank.structure import Structure
from keras_ether.bank.structure import tensors_of
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.traced import concrete
from keras_ether.ops.traced import is_traced
from keras_ether.ops.values import to_numpy
from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Tensor
from keras_ether.types import Variable


class BankModel(Loops, NamedRows, keras.Model):
    """Computes each example with the adapter of its `adapter_id`.

    `keras_ether.AdapterBank` makes it, as its attribute `model`.

    Args:
        base: The adapted model. It is shared, not copied.
        structure: Its `Structure`.
        rows: Integer, number of rows of the stacks.
        certifies: Whether `trial` runs for each new kind of inputs.
    """

    def __init__(
        self, base: Model, structure: Structure, rows: int, certifies: bool
    ) -> None:
        if takes(base, ADAPTER_ID):
            raise ValueError(
                f"Model '{base.name}' has an input '{ADAPTER_ID}', but a bank "
                "uses this name for its ids. Rename the input."
            )
        super().__init__(name=f"{base.name}_bank", dtype=base.dtype_policy)
        self.base = base
        stack_of = structure.stacks(rows)
        self.stacks = list(stack_of.values())
        table = Rows(rows)
        mark = np.random.default_rng().integers(2**30, dtype="int32")
        # The id of each row, and a number of these adapters' own.
        self.current = self.add_weight(
            name="ids",
            shape=(rows + 1,),
            initializer=lambda shape, dtype: ops.array(
                np.append(table.ids, mark), dtype
            ),
            dtype="int32",
            trainable=False,
            autocast=False,
        )
        self.built = True
        own, rows_of = structure.variables, tensors_of(self.stacks)
        # Hidden from Keras's trackers.
        self.__dict__.update(
            structure=structure,
            # The base's variable, by the id of a variable of all rows.
            model_variables={id(v): own[name] for name, v in rows_of.items()},
            table=table,
            access=Access(),
            _mark=mark,
            _stack_of=stack_of,
            _adapters=[(y, y.ether) for y in structure.adapted.values()],
            _heads=[
                (structure.layers[path], list(own.values()))
                for path, own in structure.weights.items()
            ],
            _is_open=True,
            certificates=Certificates(base, structure, certifies),
            _is_loading=False,
            _values_left=[],
        )
        self.record_trained()
        alterations = Alterations(
            [layer for layer, _ in self._heads],
            [
                layer
                for layer in internals.layers_in(base)
                if internals.is_rematerialized(layer)
            ],
        )
        # The model may be all that is left of the bank.
        undo = weakref.finalize(self, alterations.undo)
        undo.atexit = False
        self.__dict__["_undo"] = undo

    def close(self) -> None:
        """Restores the base."""
        with self.access.alone():
            if self._is_open:
                # In code of the user's own that is compiled.
                self.current.assign(np.full(self.current.shape, NO_ID))
            self.__dict__["_is_open"] = False
            self._undo()

    def values_without_adapters(
        self, layers: Iterable[Layer]
    ) -> list[tuple[Variable, np.ndarray]]:
        """What variables become if layers lose their adapters.

        No id is valid then, so code that was compiled answers nobody.
        """
        own = {id(layer) for layer, _ in self._adapters}
        if not any(id(layer) in own for layer in layers):
            return []
        return [(self.current, np.full(self.current.shape, NO_ID))]

    # What a call does.

    # By Keras's names of arguments, which become names in exported graphs.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "inputs" in kwargs and not args:
            args = (kwargs.pop("inputs"),)
        if is_traced() or not args:
            return super().__call__(*args, **kwargs)
        inputs, *rest = args
        # A training step has checked its batch, and runs no trial.
        certify = steps.current() is None
        with self.access.shared():
            inputs = self.checked(inputs, certify)
            return super().__call__(inputs, *rest, **kwargs)

    def call(
        self,
        inputs: dict[str, Any],
        training: bool | Tensor | None = None,
    ) -> Any:
        self.check_ready()
        ids, inputs = self.split(inputs)
        step = steps.current() if training else None
        if training and step is None:
            internals.give_back(self._values_left)
            raise ValueError(
                "The model of an `AdapterBank` trains only in its own `fit` or "
                "`train_on_batch`, where each adapter trains as if alone. "
                "Within another model, or in your own loop, call it with "
                "`training=False`."
            )
        ids = ops.convert_to_tensor(ids)
        values = concrete(ids)
        if values is not None:
            # Again: a compiler may have recorded what called this.
            self.table.check_ids(values)
            self._check_tried(inputs, len(values))
        if ids.shape[0] == 0:
            # No example to compute for.
            return run_base(self.base, inputs, training)
        for x in tree.flatten(inputs):
            ids = one_for_each(ids, x)
        examples = self.examples(ids, row=None if step is None else step.row)
        with per_example.computing_for(examples):
            outputs = run_base(self.base, inputs, training)
        self.certificates.check(examples.asked, inputs)
        examples.check_outputs(outputs)
        if values is None:
            outputs = examples.marked(outputs, self.current)
        return outputs

    def examples(
        self, ids: Tensor, repeated: bool = False, row: Tensor | None = None
    ) -> BankExamples:
        """The object that answers layers for examples with these ids."""
        rows = len(self.table.ids)
        return BankExamples(self._stack_of, ids, rows, repeated, row)

    def split(self, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The ids, and the inputs in the form that the base takes."""
        if not isinstance(inputs, dict) or ADAPTER_ID not in inputs:
            shown = sorted(inputs) if isinstance(inputs, dict) else type(inputs)
            raise ValueError(
                "The model of an `AdapterBank` takes a dictionary with "
                f"'{ADAPTER_ID}', one integer per example, and the inputs of "
                f"'{self.base.name}', under the key '{INPUTS}' if they are not "
                f"a dictionary. Received: {shown}"
            )
        inputs = dict(inputs)
        ids = inputs.pop(ADAPTER_ID)
        if inputs.keys() == {INPUTS} and not takes(self.base, INPUTS):
            inputs = inputs[INPUTS]
        return ids, inputs

    # What is checked before and after.

    def check_ready(self) -> None:
        """Raises a `ValueError` if the bank is closed, or its base changed."""
        self._check_layers()
        with self.access.shared():
            held = [] if is_traced() else internals.values_held([self.current])
            for _, ids in held:
                if not np.array_equal(to_numpy(ids), self.marked_ids()):
                    raise ValueError(
                        "Weights of other adapters were loaded into the "
                        "`AdapterBank` without their names. Load them with "
                        "`bank.model.load_weights`, which loads names, too."
                    )

    def _check_layers(self) -> None:
        """As `check_ready`, without the lock, which a loop may hold."""
        if not self._is_open:
            raise ValueError("This `AdapterBank` is closed. Make a new one.")
        for layer, adapter in self._adapters:
            if getattr(layer, "ether", None) is not adapter:
                raise ValueError(
                    f"The adapter of layer '{layer.path}' of model "
                    f"'{self.base.name}' was merged or removed since the "
                    "`AdapterBank` was made. Make a new bank."
                )
        for layer, variables in self._heads:
            if not heads.is_as_it_was(layer, variables):
                raise ValueError(
                    f"Layer '{layer.path}' of the head of '{self.base.name}' "
                    "was quantized, or has another class or other variables "
                    "since the `AdapterBank` was made. Make a new bank."
                )

    def checked(
        self,
        inputs: Any,
        certify: bool = True,
        trains: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """Inputs whose ids are int32, where their values are known.

        Args:
            inputs: What a user passes to the model.
            certify: Whether inputs of a new kind may have a trial now.
                Defaults to `True`.
            trains: Whether adapters train on them. Defaults to `False`.
            batch_size: Integer, how many examples the model computes at once.
                Defaults to `None`, for all.

        Raises:
            ValueError: if an id belongs to no adapter in the bank, if the
                number of ids is not that of the examples, or if a trial fails.
        """
        ids, x = self.split(inputs)
        parts = tree.flatten(x)
        is_symbolic = any(isinstance(part, keras.KerasTensor) for part in parts)
        values = None if is_symbolic else concrete(ids)
        if values is None:
            return inputs
        found = self.table.check_ids(values)
        for part in parts:
            if getattr(part, "shape", ()):
                check_size(len(found), part.shape[0])
        size = min(len(found), batch_size or len(found))
        for kind in (CALL, TRAINING)[: 1 + trains]:
            if not size or not self.certificates.is_new(x, size, kind):
                continue
            if certify:
                self._check_layers()
                with self.values_restored():
                    self.certificates.certify_call(x, size, kind)
            elif kind == TRAINING or BACKEND == "jax":
                # No later check will run: on JAX a loop holds the weights.
                raise ValueError(
                    "Another thread passed inputs of a new kind, such as of "
                    "another length or in a larger batch, while `fit`, "
                    "`predict` or `evaluate` ran. No trial can run then. "
                    "Before such a call, run `predict` or `train_on_batch` of "
                    "the bank's model on such inputs, or let the largest batch "
                    "be the first."
                )
        return {**inputs, ADAPTER_ID: found}

    def _check_tried(self, inputs: Any, size: int) -> None:
        """Raises a `ValueError` for a `stateless_call` without a trial."""
        # PyTorch infers shapes by calls with values.
        is_stateless = BACKEND != "torch" and steps.current() is None
        if is_stateless and self.certificates.is_new(inputs, size):
            raise ValueError(
                "`stateless_call` of the model of an `AdapterBank` got inputs "
                "of a new kind, such as of another length or in a larger "
                "batch. Call the model on such inputs first, for a trial."
            )

    def export(
        self,
        filepath: str | os.PathLike,
        *args: Any,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """See `keras.Model.export`. The signature includes `adapter_id`."""
        if input_signature is None:
            input_signature = signature(self.base)
        with self.access.shared():
            return super().export(
                filepath, *args, input_signature=input_signature, **kwargs
            )

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be quantized. Quantize the "
            "base before `keras_ether.apply`, then make a bank."
        )

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be saved as a whole. "
            "`bank.save(name, file)` saves one adapter, and "
            "`bank.model.export` writes a SavedModel with all adapters."
        )

    def get_config(self) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be made from a configuration. "
            "Make a bank from a copy of the adapted model."
        )
