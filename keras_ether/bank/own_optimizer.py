"""An optimizer that trains each row of a bank as if it were alone.

It wraps the user's optimizer, which is built for a single adapter. All state of
that optimizer (moments, averages, its step count) has a row for each adapter
here. In a step, the inner optimizer updates the adapters of the batch one by
one, with Keras's own code. Nothing else changes.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.bank import step as steps
from keras_ether.bank.access import Access
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import not_compiled
from keras_ether.ops.backend import tensor
from keras_ether.ops.each_example import dense_gradient
from keras_ether.ops.each_example import set_row
from keras_ether.ops.each_example import take_rows
from keras_ether.ops.each_example import write_row
from keras_ether.ops.values import to_numpy
from keras_ether.types import Optimizer
from keras_ether.types import Tensor
from keras_ether.types import Variable

REFUSED = (
    keras.optimizers.LossScaleOptimizer,
    keras.optimizers.MultiOptimizer,
)
# A value that no moment starts at.
START = 0.7


class OwnOptimizer(keras.optimizers.Optimizer):
    """Updates each adapter of a batch with an optimizer for a single adapter.

    Args:
        alone: A Keras optimizer.
        rows: Integer, the leading axis of the variables that it trains.
        access: The bank's `Access`.
        model_variables: Dictionary from the id of a variable that it trains to
            the model's own variable, whose name and path the inner optimizer
            sees.
    """

    def __init__(
        self,
        alone: Optimizer,
        rows: int,
        access: Access,
        model_variables: dict[int, Variable],
    ) -> None:
        if isinstance(alone, REFUSED):
            raise ValueError(
                f"{type(alone).__name__} can't train adapters of a bank, "
                "because it couples them. Pass its inner optimizer (under "
                "`mixed_float16`, with `auto_scale_loss=False` and a "
                f"`loss_scale_factor`). Received: optimizer={alone!r}"
            )
        if alone.built:
            raise ValueError(
                f"The optimizer of a bank must be new, but this {alone.name} "
                "was built for other variables, whose state would be every "
                "adapter's. Pass a new optimizer to `compile`. Received: "
                f"optimizer={alone!r}"
            )
        super().__init__(learning_rate=0.0, name=alone.name)
        self.rows = rows
        # Hidden from the tracker: the inner optimizer's state changes within a
        # step, and is not the state of this one.
        self.__dict__.update(
            alone=alone, access=access, model_variables=model_variables
        )
        if isinstance(internals.rate_set(alone), keras.Variable):
            # One learning rate for all, which compiled code reads.
            self._track_variable(internals.rate_set(alone))

    def build(self, variables: list[Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        single = []
        for variable in variables:
            own = self.model_variables[id(variable)]
            with contextlib.ExitStack() as scopes:
                # They are a part of a variable's name on TensorFlow.
                for part in own.path.split("/")[:-1]:
                    scopes.enter_context(keras.name_scope(part))
                one = keras.Variable(
                    np.full(own.shape, START),
                    dtype=variable.dtype,
                    name=own.name,
                )
            # Optimizers may choose variables by path, by name, or by object.
            internals.set_variable_path(one, own.path)
            internals.exclude_like(self.alone, one, [variable, own])
            single.append(one)
        self.alone.build(single)
        rate = internals.rate_set(self.alone)
        slots = [v for v in self.alone.variables if v is not rate]
        start = [to_numpy(v) for v in slots]
        if any(np.allclose(value, START) for value in start):
            raise ValueError(
                f"{type(self.alone).__name__} can't train adapters of a bank, "
                "because its state starts at the values of the weights."
            )
        states = [
            self.add_variable(
                shape=(self.rows, *one.shape),
                dtype=one.dtype,
                initializer=_repeated(value),
                name=f"{one.name}_of_each",
            )
            for one, value in zip(slots, start, strict=True)
        ]
        self.__dict__.update(
            single=single, slots=slots, start=start, states=states
        )
        # Which rows trained since the last `fit` began.
        self.trained = self.add_variable(
            shape=(self.rows,), dtype="int32", name="trained"
        )

    def may_go_on(self, alone: Any, variables: list[Variable]) -> bool:
        """Whether it wraps an optimizer, and trains or can train variables."""
        if alone is not self.alone:
            return False
        built_for = list(map(id, self._stacks))
        return not self.built or built_for == list(map(id, variables))

    @property
    def learning_rate(self) -> Any:
        return self.alone.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.alone.learning_rate = value

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        self.alone.exclude_from_weight_decay(*args, **kwargs)

    def scale_loss(self, loss: Tensor) -> Tensor:
        return self.alone.scale_loss(loss)

    def get_config(self) -> dict[str, Any]:
        return self.alone.get_config()

    def restart_row(self, row: int) -> None:
        """Resets the state of the adapter in a row."""
        if self.built:
            set_row(
                [*self.states, self.trained],
                row,
                [*self.start, np.zeros((), "int32")],
            )

    def restart(self) -> None:
        """Resets the state of all adapters."""
        if self.built:
            for state, start in zip(self.states, self.start, strict=True):
                state.assign(np.broadcast_to(start, state.shape))
            self.begin()

    def begin(self) -> None:
        """Clears the record of trained rows."""
        if self.built:
            self.trained.assign(np.zeros(self.rows, "int32"))

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[Variable] | None = None,
    ) -> None:
        step = steps.current()
        if step is None:
            raise ValueError(
                "The optimizer of a bank's model needs the adapter of each "
                "example. Train with `fit` or `train_on_batch` of `bank.model`."
            )
        if not self.built:
            self.build(list(trainable_variables or ()))
        dense = [None if g is None else dense_gradient(g) for g in grads]
        if BACKEND == "jax":
            self._apply_all(step, dense)
        elif BACKEND == "tensorflow":
            self._apply_in_turn(step, dense)
        else:
            self._apply_eagerly(step, dense)
        internals.update_count(self).assign_add(1)

    def _apply_all(self, step: steps.Step, grads: list[Tensor | None]) -> None:
        """Updates all adapters at once, without the inner variables."""
        trains = step.is_first()
        # Other examples write back the values of the base's row.
        rows = ops.where(trains, step.row, 0)
        given = [g for g in grads if g is not None]
        values = [
            [take_rows(v, rows) for v in part]
            for part in (self._stacks, self.states, given)
        ]
        indices = {id(v): i for i, v in enumerate(self.slots)}
        rate = internals.rate_set(self.alone)

        def update(elements: Any) -> Any:
            own, state, slopes = elements
            left = iter(slopes)
            own, state = self.alone.stateless_apply(
                [
                    tensor(rate) if v is rate else state[indices[id(v)]]
                    for v in self.alone.variables
                ],
                [None if g is None else next(left) for g in grads],
                own,
            )
            slots = [
                value
                for v, value in zip(self.alone.variables, state, strict=True)
                if v is not rate
            ]
            return own, slots

        new = ops.vectorized_map(update, values)
        for variable, old, value in zip(
            [*self._stacks, *self.states],
            [*values[0], *values[1]],
            [*new[0], *new[1]],
            strict=True,
        ):
            each = ops.reshape(trains, (-1,) + (1,) * (len(old.shape) - 1))
            chosen = ops.where(each, value, old)
            variable.assign(ops.scatter_update(variable, rows[:, None], chosen))
        self.trained.assign(
            ops.scatter_update(
                self.trained, rows[:, None], ops.cast(trains, "int32")
            )
        )

    def _apply_in_turn(
        self, step: steps.Step, grads: list[Tensor | None]
    ) -> None:
        """Updates one adapter after another, in a loop of the graph."""
        trains = step.is_first()

        def update(i: Tensor, done: Tensor) -> Tensor:
            def one() -> Tensor:
                self._apply_row(step.row[i], grads)
                return done + 1

            return ops.cond(trains[i], one, lambda: done)

        ops.fori_loop(0, ops.shape(step.row)[0], update, ops.zeros((), "int32"))

    @not_compiled
    def _apply_eagerly(
        self, step: steps.Step, grads: list[Tensor | None]
    ) -> None:
        for row in np.unique(to_numpy(step.row)[to_numpy(step.trains)]):
            self._apply_row(int(row), grads)

    def _apply_row(self, row: Any, grads: list[Tensor | None]) -> None:
        with self._loaded(row):
            self.alone.apply(
                [None if g is None else g[row] for g in grads], self.single
            )
        write_row(self.trained, row, ops.ones((), "int32"))

    @property
    def _stacks(self) -> list[Variable]:
        return internals.trained_variables(self)

    @contextlib.contextmanager
    def _loaded(self, row: Any) -> Iterator[None]:
        """Loads a row into the inner optimizer's variables."""
        inner = [*self.single, *self.slots]
        pairs = list(zip(inner, [*self._stacks, *self.states], strict=True))
        index = ops.reshape(ops.convert_to_tensor(row, "int32"), (1,))
        for one, stack in pairs:
            one.assign(take_rows(stack, index)[0])
        yield
        for one, stack in pairs:
            write_row(stack, row, tensor(one))

    def finalize_variable_values(self, var_list: list[Variable]) -> None:
        """Replaces values by their averages, if the optimizer has averages.

        Only in rows that trained since `begin`.
        """
        if not self.built or not self.alone.use_ema:
            return
        with self.access.alone():
            for row in np.flatnonzero(to_numpy(self.trained)):
                with self._loaded(int(row)):
                    self.alone.finalize_variable_values(self.single)
            self.begin()


def _repeated(start: np.ndarray) -> Callable:
    # Copied: PyTorch's rows would share their memory.
    return lambda shape, dtype: ops.array(
        np.broadcast_to(start, shape).copy(), dtype
    )
