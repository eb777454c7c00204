"""Values of a bank's variables while loops of Keras have taken them, on JAX.

There a loop takes the values of a model's variables, and writes them back at
its end. On other backends the variables keep their values.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras

from keras_ether import _keras_internals as internals
from keras_ether.ops.backend import BACKEND

# A context of the bank's `Access`.
Lock = Callable[[], contextlib.AbstractContextManager]


class TakenValues(keras.Model):
    """A model whose values are known while a loop runs, and after it failed.

    A subclass has the attributes of `BankModel`.
    """

    # Keras's, on JAX.
    _jax_state: dict[str, Any] | None
    _jax_state_synced: bool

    def one_call(self) -> contextlib.AbstractContextManager:
        """A context in which several calls are atomic for other threads."""
        if BACKEND == "jax":
            return self.access.alone()
        return self.access.shared()

    @contextlib.contextmanager
    def looping(self, lock: Lock) -> Iterator[None]:
        """A context for a loop of Keras, or one step, which holds the lock.

        No checked id ends before a step has used it.
        """
        if BACKEND != "jax":
            with lock():
                yield
            return
        with self.access.alone():
            self.restore_values()
            optimizer = self.optimizer.variables if self.optimizer else []
            variables = [*self.variables, *self.metrics_variables, *optimizer]
            before = internals.values_held(variables)
            try:
                yield
            except BaseException:
                # Not if the loop fails: the values from its start remain.
                self.restore_values()
                internals.give_back(before)
                raise
            finally:
                self.remember()

    def hold(self, state: tuple) -> None:
        """Keeps the state that a step takes, for `restore_values` within it.

        Keras keeps that of the step before, whatever callbacks changed since.
        """
        if BACKEND != "jax":
            return
        parts = ["trainable", "non_trainable", "optimizer", "metrics"]
        if len(state) < len(parts):
            # Of an evaluation, or of a prediction.
            parts.remove("optimizer")
        names = [f"{part}_variables" for part in parts]
        self._jax_state = dict(zip(names, state, strict=False))

    @contextlib.contextmanager
    def values_restored(self) -> Iterator[None]:
        """A context in which variables have values, within a step too."""
        if BACKEND != "jax":
            yield
            return
        taken = [v for v in self.variables if v._value is None]
        is_synced = self._jax_state_synced
        self.restore_values()
        try:
            yield
        finally:
            # The step goes on with the arrays that it took.
            for variable in taken:
                variable._value = None
            self._jax_state_synced = is_synced

    def remember(self) -> None:
        """Keeps the values, which a loop of an outer model takes.

        If that loop fails, JAX can't restore them otherwise.
        """
        if BACKEND == "jax":
            held = internals.values_held(self.variables)
            self.__dict__["_values_left"] = held

    def restore_values(self) -> None:
        """Restores the values of variables that a loop of JAX has taken."""
        if BACKEND == "jax":
            self.jax_state_sync()

    def check_values(self) -> None:
        """Restores the values before a change of the bank.

        Raises:
            RuntimeError: if a loop of another model has taken them. It would
                write its own back.
        """
        self.restore_values()
        if internals.are_taken(self.variables):
            raise RuntimeError(
                "A loop of another model that contains the model of an "
                "`AdapterBank` has taken its weights, so the bank can't change "
                "now. Call `jax_state_sync()` of that model first."
            )
