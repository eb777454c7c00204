"""Training, prediction and evaluation of a bank's model by Keras's loops."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_ether.adapters import per_example
from keras_ether.bank import step as steps
from keras_ether.bank.data_checks import Watch
from keras_ether.bank.own_loss import own_losses
from keras_ether.bank.own_optimizer import OwnOptimizer
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import tensors_of
from keras_ether.bank.taken_values import Lock
from keras_ether.bank.taken_values import TakenValues
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.traced import concrete
from keras_ether.types import Tensor
from keras_ether.types import Variable

_FIT = inspect.signature(keras.Model.fit)
_COMPILE = inspect.signature(keras.Model.compile)
# Keras's default.
BATCH_SIZE = 32


class Loops(TakenValues):
    """A model whose loops check ids, and are atomic for other threads.

    A subclass has the attributes of `BankModel`.
    """

    @property
    def optimizer(self) -> OwnOptimizer | None:
        """The optimizer, which trains each adapter as if alone."""
        return self.__dict__.get("_own_optimizer")

    @optimizer.setter
    def optimizer(self, value: Any) -> None:
        current = self.optimizer
        if current is not None and current.may_go_on(
            value, self.trainable_variables
        ):
            # Compiled again, as Keras's models are: with the same state.
            value = current
        if value is not None and not isinstance(value, OwnOptimizer):
            value = OwnOptimizer(
                value, len(self.table.ids), self.access, self.model_variables
            )
        self.__dict__["_own_optimizer"] = value

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """See `keras.Model.compile`.

        Every adapter trains as if alone: on the loss of its own examples, by
        its own steps of the optimizer. What is frozen in the base now is frozen
        in all adapters.
        """
        self.record_trained()
        given = _COMPILE.bind(self, *args, **kwargs)
        if "loss" in given.arguments:
            given.arguments["loss"] = own_losses(given.arguments["loss"])
        super().compile(*given.args[1:], **given.kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        if steps.current() is not None and self.losses:
            raise ValueError(
                f"Model '{self.base.name}' adds losses over all examples of a "
                "batch (`add_loss`, `activity_regularizer`), so its adapters "
                "can't train each as if alone."
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
        step = steps.Step(row, ops.not_equal(row, BASE))
        own = frozenset(id(y) for y, _ in (*self._adapters, *self._heads))
        with steps.running(step), per_example.binding(own):
            return super().train_step(*args)

    @contextlib.contextmanager
    def _checking(
        self, lock: Lock = contextlib.nullcontext, trains: bool = False
    ) -> Iterator[Watch]:
        """A context for a loop of Keras, with a `Watch` for its data.

        Args:
            lock: The lock that it holds. Defaults to none.
            trains: Whether adapters train in it. Defaults to `False`.
        """

        def check(x: Any, *args: Any, **kwargs: Any) -> Any:
            x = self.checked(x, *args, trains=trains, **kwargs)
            ids = concrete(self.split(x)[0])
            if ids is not None:
                hold(ids)
            return x

        watch = Watch(check)
        try:
            with self.looping(lock), contextlib.ExitStack() as loop:
                with self.access.shared():
                    # Not while `load_weights` runs.
                    hold = loop.enter_context(self.table.holding())
                if trains and self.optimizer is not None:
                    # Not in a graph, where its variables have no values yet.
                    self.optimizer.build(self.trainable_variables)
                yield watch
        except Exception as error:
            if watch.error is None or watch.error is error:
                raise
            raise watch.error from error

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        given = _FIT.bind(self, *args, **kwargs)
        self._check_trains(given.arguments.get("callbacks"))
        with self._checking(trains=True) as watch:
            sizes = ("batch_size", "validation_batch_size")
            size = max(given.arguments.get(n) or BATCH_SIZE for n in sizes)
            for name in ("x", "validation_data"):
                data = given.arguments.get(name)
                if isinstance(data, tuple | list):
                    data = (watch.of(data[0], size), *data[1:])
                elif data is not None or name == "x":
                    data = watch.of(data, size)
                given.arguments[name] = data
            if self.optimizer is not None:
                self.optimizer.begin()
            return super().fit(*given.args[1:], **given.kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with self._checking() as watch:
            x = watch.of(x, batch_size or BATCH_SIZE)
            return super().evaluate(x, y, batch_size, *args, **kwargs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with self._checking() as watch:
            x = watch.of(x, batch_size or BATCH_SIZE)
            return super().predict(x, batch_size, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_trains(None)
        with self._checking(self.access.alone, trains=True) as watch:
            return super().train_on_batch(watch.of(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        with self._checking(self.access.shared) as watch:
            return super().test_on_batch(watch.of(x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        with self._checking(self.access.shared) as watch:
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

    def _guard(self, name: str, lock: Lock) -> None:
        """Makes one run of a compiled function atomic for other threads."""
        function = getattr(self, name)
        if getattr(function, "is_whole", False):
            return

        def run(*args: Any) -> Any:
            with lock():
                # A callback may have closed the bank.
                self._check_layers()
                self.hold(args[0])
                return function(*args)

        run.is_whole = True  # type: ignore[attr-defined]
        setattr(self, name, run)

    def _check_trains(self, callbacks: Any) -> None:
        self.check_ready()
        if not self._trained:
            raise ValueError(
                f"All adapters of model '{self.base.name}' are frozen, and so "
                "is its head, so adapters of its bank can't train. Set "
                "`trainable` of its layers, then call `compile` of the bank's "
                "model again."
            )
        for name, variable in self.structure.variables.items():
            for what in ("regularizer", "constraint"):
                if getattr(variable, what, None) is not None:
                    raise ValueError(
                        f"Weight '{name}' has a {what}, with which adapters of "
                        "a bank can't train. Make the layer without it."
                    )
        # Of a `CallbackList`, or in any structure.
        callbacks = getattr(callbacks, "callbacks", callbacks)
        for callback in keras.tree.flatten(callbacks):
            if isinstance(callback, keras.callbacks.SwapEMAWeights):
                raise ValueError(
                    "`SwapEMAWeights` would replace all adapters by averages, "
                    "including adapters that don't train. Leave it out."
                )
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                raise ValueError(
                    "`BackupAndRestore` loads weights in `fit`, which would "
                    "end the ids in its data. Leave it out. To resume, call "
                    "`bank.model.load_weights`, then ask for ids."
                )
        strategy = getattr(self, "distribute_strategy", None)
        if getattr(strategy, "num_replicas_in_sync", 1) > 1:
            raise ValueError(
                "Adapters of a bank can't train on several replicas of "
                "`tf.distribute`."
            )

    @property
    def trainable(self) -> bool:
        """Whether adapters can train, always. `fit` trains those it is given.

        Raises:
            ValueError: if it is set: the layers are the base's, too.
        """
        return True

    @trainable.setter
    def trainable(self, value: bool) -> None:
        raise ValueError(
            "`trainable` of the model of an `AdapterBank` can't be set: its "
            "layers are shared with the model that the bank was made of. "
            f"Only `fit` trains adapters. Received: trainable={value!r}"
        )

    # The base's own vectors and head train in the base, but not here.

    @property
    def trainable_variables(self) -> list[Variable]:
        return list(self._trained)

    def record_trained(self) -> None:
        """Records which variables train: what is not frozen in the base.

        Later changes of its flags need another `compile`, as Keras's models do.
        """
        self.__dict__["_trained"] = [
            variable
            for variable in tensors_of(self.stacks).values()
            if self.model_variables[id(variable)].trainable
        ]

    @property
    def trainable_weights(self) -> list[Variable]:
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[Variable]:
        return self._not_trained(self.variables)

    @property
    def non_trainable_weights(self) -> list[Variable]:
        return self._not_trained(self.weights)

    def _not_trained(self, variables: list[Variable]) -> list[Variable]:
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in variables if id(v) not in trained]
