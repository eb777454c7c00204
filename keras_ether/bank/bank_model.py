"""The model of a bank, which takes an adapter's id for each example."""

import contextlib
import inspect
import json
import os
import weakref
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether import _keras_internals as internals
from keras_ether.adapters import per_example
from keras_ether.bank import heads
from keras_ether.bank import step as steps
from keras_ether.bank import trial
from keras_ether.bank.access import Access
from keras_ether.bank.alterations import Alterations
from keras_ether.bank.edges import Watch
from keras_ether.bank.examples import Asked
from keras_ether.bank.examples import BankExamples
from keras_ether.bank.names import ADAPTER_ID
from keras_ether.bank.names import INPUTS
from keras_ether.bank.own_loss import own_losses
from keras_ether.bank.own_optimizer import OwnOptimizer
from keras_ether.bank.rows import Rows
from keras_ether.bank.stacks import BASE
from keras_ether.bank.stacks import fill
from keras_ether.bank.structure import Structure
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import snapshot
from keras_ether.ops.traced import concrete
from keras_ether.ops.traced import is_traced
from keras_ether.ops.traced import same_leading_axis
from keras_ether.types import Model
from keras_ether.types import Shape
from keras_ether.types import Tensor
from keras_ether.types import Variable

_FIT = inspect.signature(keras.Model.fit)


class BankModel(keras.Model):
    """Computes each example with the adapter that its `adapter_id` names.

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
        super().__init__(name=f"{base.name}_bank", dtype=base.dtype_policy)
        self.base = base
        stacks = structure.stacks(rows)
        self.stacks = list(stacks.values())
        table = Rows(rows)
        mark = np.random.default_rng().integers(2**31, dtype="int32")
        # The id of each row, and a number of this bank's own.
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
        # Hidden from Keras's trackers.
        self.__dict__.update(
            structure=structure,
            table=table,
            access=Access(),
            _mark=mark,
            _stack_of={id(owner): stack for owner, stack in stacks.items()},
            _adapters=[(y, y.ether) for y in structure.adapted.values()],
            _heads=[
                (structure.layers[path], list(own.values()))
                for path, own in structure.heads.items()
            ],
            _is_open=True,
            _certifies=certifies,
            _certified={},
            _names_read=None,
        )
        alterations = Alterations(
            [layer for layer, _ in self._heads],
            [
                layer
                for layer in internals.everything_in(base)
                if internals.is_rematerialized(layer)
            ],
        )
        # The model may be all that is left of the bank.
        undo = weakref.finalize(self, alterations.undo)
        undo.atexit = False
        self.__dict__["_undo"] = undo

    def close(self) -> None:
        """Leaves the base as it was."""
        with self.access.alone():
            self.__dict__["_is_open"] = False
            self._undo()

    # What a call does.

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return super().__call__(inputs, *args, **kwargs)
        with self.access.shared():
            return super().__call__(self.checked(inputs), *args, **kwargs)

    def call(
        self,
        inputs: dict[str, Any],
        training: bool | Tensor | None = None,
    ) -> Any:
        self.check_ready()
        ids, inputs = self.split(inputs)
        step = steps.current() if training else None
        if training and step is None:
            raise ValueError(
                "The model of an `AdapterBank` trains by its own `fit` or "
                "`train_on_batch` alone: they let each adapter train as if "
                "alone. Within another model, or in a loop of yours, call it "
                "with `training=False`."
            )
        ids = ops.convert_to_tensor(ids)
        values = concrete(ids)
        if values is not None:
            # Again: a compiler may have recorded what called this.
            self.table.check_ids(values)
        if ids.shape[0] == 0:
            # No example to compute for.
            return self.base(inputs)
        for x in tree.flatten(inputs):
            ids = _of_size(ids, x)
        examples = self.examples(ids, row=None if step is None else step.row)
        with per_example.computing_for(examples):
            outputs = self.base(inputs)
        self._check_asked(examples.asked, inputs)
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

    # What is checked before and after.

    def check_ready(self) -> None:
        """Raises a `ValueError` if the bank is closed, or its base changed."""
        if not self._is_open:
            raise ValueError("This `AdapterBank` is closed. Make a new one.")
        for layer, adapter in self._adapters:
            if getattr(layer, "ether", None) is not adapter:
                raise ValueError(
                    f"Layer '{layer.path}' of model '{self.base.name}' no "
                    "longer has the adapter that it had when the `AdapterBank` "
                    "was made: it was merged or removed since. Make a new bank."
                )
        for layer, variables in self._heads:
            if not heads.is_as_it_was(layer, variables):
                raise ValueError(
                    f"Layer '{layer.path}' of the head of '{self.base.name}' "
                    "was quantized, or its weights changed, since the "
                    "`AdapterBank` was made. Make a new bank."
                )

    def checked(self, inputs: Any, certify: bool = True) -> Any:
        """Inputs whose ids are int32, where their values are known.

        Raises:
            ValueError: if an id is none of an adapter in the bank, if there is
                not one for each example, or if a trial fails.
        """
        ids, x = self.split(inputs)
        values = None if _is_symbolic(x) else concrete(ids)
        if values is None:
            return inputs
        with self.access.shared():
            found = self.table.check_ids(values)
            for part in tree.flatten(x):
                size = part.shape[0] if getattr(part, "shape", ()) else None
                if size not in (None, len(found)):
                    raise ValueError(
                        "`adapter_id` must have one id for each example. "
                        f"Received: {len(found)} ids for {size} examples"
                    )
            if certify and len(found):
                self.certify(x)
        return {**inputs, ADAPTER_ID: found}

    def certify(
        self,
        inputs: Any,
        answer: Callable[[Any], Any] | None = None,
        kind: str = "call",
    ) -> None:
        """Runs a trial, unless one was passed for inputs of this kind.

        Args:
            inputs: Inputs of the base, with values.
            answer: Function from inputs to outputs, or `None` for a call.
                Defaults to `None`.
            kind: String, what else `answer` depends on.
        """
        key = (kind, _signature(inputs))
        if not self._certifies or None in key or key in self._certified:
            return
        self.settle()
        first = tree.map_structure(lambda x: x[: max(trial.SIZES)], inputs)
        self._certified[key] = trial.Trial(
            self.base,
            self.structure,
            answer or (lambda x: self.base(x, training=False)),
            repeated=answer is not None,
        ).run(first)

    def certify_at_start(self, batch: Any) -> None:
        """The first trial, over a batch or over invented inputs."""
        if not self._certifies:
            return
        if batch is not None:
            self.certify(batch)
            return
        symbols = base_inputs(self.base)
        found = (
            None if symbols is None else trial.inputs_for(self.base, symbols)
        )
        if found is None:
            raise ValueError(
                f"No inputs of model '{self.base.name}' can be made up for a "
                "trial of whether its adapters can be mixed in a batch. Pass "
                "some as `trial`: `AdapterBank(model, capacity, trial=x)`, in "
                "the form in which the model takes them."
            )
        self.certify(found)

    def _check_asked(self, asked: Counter[Asked], inputs: Any) -> None:
        """Raises unless all were asked that a trial saw, and as often."""
        known = self._certified.get(("call", _signature(inputs)))
        known = known or next(iter(self._certified.values()), None)
        self.check_asked(asked, known)

    def check_asked(
        self, asked: Counter[Asked], known: Counter[Asked] | None
    ) -> None:
        """Raises a `ValueError` unless layers asked as a trial saw them.

        Args:
            asked: How often each did.
            known: The same in the trial, `None` for at least once.
        """
        if known is None:
            wrong = trial.expected(self.structure) - set(asked)
        else:
            wrong = {k for k in known | asked if known[k] != asked[k]}
        if not wrong:
            return
        path, side = min(wrong)
        wanted = "1 or more" if known is None else known[path, side]
        raise ValueError(
            f"Layer '{path}' asked {asked[path, side]} times for the adapters "
            f"of this call's examples, and in a trial of the bank {wanted} "
            "times: it would compute with other values. A `tf.function` or "
            "`jax.jit` within the model keeps what it recorded before; inputs "
            "of another kind want a trial of their own: call the model on some "
            "first."
        )

    # Training, prediction and evaluation by Keras's own loops.

    @property
    def optimizer(self) -> OwnOptimizer | None:
        """The optimizer, which trains each adapter as if alone."""
        return self.__dict__.get("_own_optimizer")

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        if value is not None and not isinstance(value, OwnOptimizer):
            value = OwnOptimizer(value, len(self.table.ids), self.access)
        self.__dict__["_own_optimizer"] = value

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.compile`.

        Every adapter trains as if alone: on the loss of its own examples, by
        its own steps of the optimizer.
        """
        given = _COMPILE.bind(self, *args, **kwargs)
        if "loss" in given.arguments:
            given.arguments["loss"] = own_losses(given.arguments["loss"])
        super().compile(*given.args[1:], **given.kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        if steps.current() is not None and self.losses:
            raise ValueError(
                f"Model '{self.base.name}' adds losses of its own while it "
                "computes (`add_loss`, `activity_regularizer`), over all "
                "examples of a batch. Adapters can't train on them each as "
                "alone."
            )
        return super().compute_loss(*args, **kwargs)

    def train_step(self, *args: Any) -> Any:
        # On JAX the variables' values come as arguments.
        scope: contextlib.AbstractContextManager = contextlib.nullcontext()
        if BACKEND == "jax":
            values = zip(self.non_trainable_variables, args[0][1], strict=True)
            scope = keras.StatelessScope(list(values))
        x, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        ids, _ = self.split(x)
        examples = self.examples(ops.convert_to_tensor(ids))
        with scope:
            valid = examples.are_valid(self.current)
        row = ops.where(valid, examples.row, BASE)
        with steps.running(steps.Step(row, ops.not_equal(row, BASE))):
            return super().train_step(*args)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        given = _FIT.bind(self, *args, **kwargs)
        self._check_trains(given.arguments.get("callbacks"))
        with self._edge() as watch, self._loop():
            for name in ("x", "validation_data"):
                if name not in given.arguments:
                    continue
                data = given.arguments[name]
                if isinstance(data, tuple | list):
                    data = (watch.of(data[0]), *data[1:])
                else:
                    data = watch.of(data)
                given.arguments[name] = data
            if self.optimizer is not None:
                self.optimizer.begin()
            return super().fit(*given.args[1:], **given.kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        with self._edge() as watch, self._loop():
            return super().evaluate(watch.of(x), *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        with self._edge() as watch, self._loop():
            return super().predict(watch.of(x), *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_trains(None)
        with self._edge() as watch, self._loop():
            return super().train_on_batch(watch.of(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        with self._edge() as watch, self._loop():
            return super().test_on_batch(watch.of(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        with self._edge() as watch, self._loop():
            return super().predict_on_batch(watch.of(x))

    def make_train_function(self, force: bool = False) -> Any:
        self.check_ready()
        super().make_train_function(force)
        self._guard("train_function", self.access.alone)

    def make_test_function(self, force: bool = False) -> Any:
        self.check_ready()
        super().make_test_function(force)
        self._guard("test_function", self.access.shared)

    def make_predict_function(self, force: bool = False) -> Any:
        self.check_ready()
        super().make_predict_function(force)
        self._guard("predict_function", self.access.shared)

    def _guard(
        self,
        name: str,
        access: Callable[[], contextlib.AbstractContextManager],
    ) -> None:
        """Lets one run of a compiled function be whole to other threads."""
        function = getattr(self, name)
        if getattr(function, "is_whole", False):
            return

        def run(*args: Any) -> Any:
            with access():
                return function(*args)

        run.is_whole = True  # type: ignore[attr-defined]
        setattr(self, name, run)

    def one_call(self) -> contextlib.AbstractContextManager:
        """A context in which several calls are one to other threads."""
        if BACKEND == "jax":
            return self.access.alone()
        return self.access.shared()

    def _loop(self) -> contextlib.AbstractContextManager:
        # On JAX a loop takes the variables' values away, and writes them back.
        if BACKEND == "jax":
            return self.access.alone()
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Gives variables the values back that a loop of JAX has, if any."""
        if BACKEND == "jax":
            self.jax_state_sync()

    @contextlib.contextmanager
    def _edge(self) -> Iterator[Watch]:
        watch = Watch(self.checked)
        try:
            yield watch
        except Exception as error:
            if watch.error is None or watch.error is error:
                raise
            raise watch.error from error

    def _check_trains(self, callbacks: Any) -> None:
        for name, variable in self.structure.variables.items():
            for what in ("regularizer", "constraint"):
                if getattr(variable, what, None) is not None:
                    raise ValueError(
                        f"Weight '{name}' has a {what}, and adapters of a bank "
                        "can't train with one. Make the layer without it."
                    )
        for callback in callbacks if isinstance(callbacks, list) else []:
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                raise ValueError(
                    "`SwapEMAWeights` would put averages in the place of all "
                    "adapters, also of those that do not train. Leave it out."
                )
        strategy = getattr(self, "distribute_strategy", None)
        if getattr(strategy, "num_replicas_in_sync", 1) > 1:
            raise ValueError(
                "Adapters of a bank can't train on several replicas of "
                "`tf.distribute`."
            )

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

    # Rows.

    def put(
        self,
        name: str,
        values: dict[str, Any],
        covered: Iterable[str],
        victim: str | None = None,
    ) -> int:
        """Puts an adapter in a row, in the place of another if need be.

        Returns:
            Its id.
        """
        leaving = victim or name
        row = self.table.place(leaving)
        # Before anything changes.
        self.table.next_id(row)
        try:
            self.write(row, values)
        except BaseException:
            # What is left in the row is nobody's.
            self.table.release(leaving, is_lost=True)
            self.publish_ids()
            raise
        if victim is not None:
            self.table.release(victim)
        self.table.settle(name, row, covered)
        self.publish_ids()
        return int(self.table.ids[row])

    def publish_ids(self) -> None:
        """Lets compiled code know which ids there are."""
        self.current.assign(np.append(self.table.ids, self._mark))

    def write(self, row: int, values: dict[str, Any]) -> None:
        """Sets the values of a row."""
        fill(self.stacks, row, values)
        if self.optimizer is not None:
            self.optimizer.restart_row(row)

    def values(self, row: int) -> dict[str, np.ndarray]:
        """The values of a row by tensor name."""
        return {
            name: value
            for stack in self.stacks
            for name, value in stack.row(row).items()
        }

    # Files.

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        names = {
            name: (self.table.row(name), self.table.covered[name])
            for name in self.table.names
        }
        text = json.dumps(names).encode()
        store["names"] = np.frombuffer(text or b" ", "uint8")

    def load_own_variables(self, store: Any) -> None:
        # Not the ids: those of before have to end.
        if "names" in store.keys():  # noqa: SIM118, it is no dictionary
            text = bytes(np.asarray(store["names"], "uint8"))
            self.__dict__["_names_read"] = json.loads(text)

    def load_weights(self, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.load_weights`: the names come with the weights.

        Ids of before end.
        """
        with self.access.alone():
            before = [(v, snapshot(v)) for v in self.variables]
            self.__dict__["_names_read"] = None
            try:
                super().load_weights(*args, **kwargs)
                if self._names_read is None:
                    raise ValueError(
                        "The file does not say which adapter is in which row: "
                        "`save_weights` of a bank's model did not write it."
                    )
            except Exception:
                for variable, value in before:
                    variable.assign(value)
                raise
            self.table.start_again(self._names_read)
            self.publish_ids()

    def set_weights(self, weights: list[Any]) -> None:
        places = [id(v) for v in self.weights]
        ids = weights[places.index(id(self.current))]
        with self.access.alone():
            if not np.array_equal(ids, np.append(self.table.ids, self._mark)):
                raise ValueError(
                    "These weights are not of the adapters that the bank has "
                    "now. `load_weights` brings names with the weights."
                )
            super().set_weights(weights)

    def export(
        self,
        filepath: str | os.PathLike,
        *args: Any,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> Any:
        """See `keras.Model.export`. The signature includes `adapter_id`."""
        if input_signature is None:
            specs = self.input_specs()
            input_signature = None if specs is None else [specs]
        with self.access.shared():
            return super().export(
                filepath, *args, input_signature=input_signature, **kwargs
            )

    def input_specs(self) -> dict[str, Any] | None:
        """Specifications of the inputs, `None` if the base's are unknown."""
        struct = base_inputs(self.base)
        if struct is None:
            return None

        def spec(shape: Shape, dtype: str, name: str) -> keras.InputSpec:
            return keras.InputSpec(shape=shape, dtype=dtype, name=name)

        specs = tree.map_structure(
            lambda x: spec((None, *x.shape[1:]), x.dtype, x.name), struct
        )
        if not isinstance(specs, dict):
            specs = {INPUTS: specs}
        return {**specs, ADAPTER_ID: spec((None,), "int32", ADAPTER_ID)}

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "The model of an `AdapterBank` can't be quantized. Quantize the "
            "base before `keras_ether.apply`, then make a bank."
        )

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


_COMPILE = inspect.signature(keras.Model.compile)


def base_inputs(base: Model) -> Any:
    """The symbolic inputs of a model as it takes them, or `None`."""
    if isinstance(base, keras.Sequential):
        inputs = base.inputs
        return inputs[0] if inputs else None
    if not getattr(base, "inputs", None):
        # What a model of a class of its own was built for.
        shape = (base.get_build_config() or {}).get("input_shape")
        is_one = isinstance(shape, tuple | list) and not any(
            isinstance(size, tuple | list) for size in shape
        )
        return keras.KerasTensor(shape, name=INPUTS) if is_one else None
    struct = internals.inputs_struct(base)
    return dict(struct) if isinstance(struct, dict) else struct


def _of_size(ids: Tensor, x: Tensor) -> Tensor:
    """The ids, one for each part of an input."""
    sizes = (ids.shape[0], x.shape[0] if len(x.shape) else 1)
    if None in sizes:
        return same_leading_axis(ids, ops.shape(x)[0])
    if sizes[0] != sizes[1]:
        raise ValueError(
            "`adapter_id` must have one id for each example. Received: "
            f"{sizes[0]} ids for {sizes[1]} examples"
        )
    return ids


def _is_symbolic(inputs: Any) -> bool:
    return any(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs))


def _signature(inputs: Any) -> tuple | None:
    """What a trial of inputs holds for: dtypes and sizes but for the batch."""
    parts = tree.flatten(inputs)
    if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in parts):
        return None
    return tuple((_kind(x), tuple(x.shape[1:])) for x in parts)


def _kind(x: Any) -> str:
    dtype = keras.backend.standardize_dtype(x.dtype)
    return "float" if keras.backend.is_float_dtype(dtype) else dtype
