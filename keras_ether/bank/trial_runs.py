"""The runs of a trial: batches of several adapters, and each adapter alone."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.adapters import per_example
from keras_ether.bank.examples import BankExamples
from keras_ether.bank.examples import check_markable
from keras_ether.bank.examples import parts_of
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import Structure
from keras_ether.bank.structure import tensors_of
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.traced import compiled
from keras_ether.ops.traced import no_gradient
from keras_ether.ops.traced import same_draws
from keras_ether.ops.values import to_numpy
from keras_ether.types import Model
from keras_ether.types import Tensor

# Keras's name of the state of a random generator.
SEED = "seed_generator_state"
# The base, and three random adapters.
ROWS = 4


class Runs:
    """Runs a model with several adapters in a batch, or with one alone.

    Args:
        base: The adapted model.
        structure: The bank's `Structure`.
        answer: Function from inputs to outputs, by way of the model.
        draws: Whether an answer may depend on an example's position in the
            batch, as with a sampler or dropout.
        repeated: See `BankExamples`.

    Attributes:
        stack_of: Stacks of the trial's own, see `Structure.stacks`.
        table: Dictionary from a tensor's name to its values in all rows.
        examples: The `BankExamples` of the last mixed batch.
    """

    examples: BankExamples

    def __init__(
        self,
        base: Model,
        structure: Structure,
        answer: Callable[[Any], Any],
        draws: bool,
        repeated: bool,
    ) -> None:
        self.base = base
        self.structure = structure
        self.answer = answer
        self.draws = draws
        self.repeated = repeated
        self.stack_of = structure.stacks(ROWS)
        self._stacked = tensors_of(self.stack_of.values())
        rng = np.random.default_rng(0)
        self.table = {
            name: _random_rows(to_numpy(v), name in structure.head, rng)
            for name, v in structure.variables.items()
        }
        # On JAX, Keras's samplers pass only the model's variables.
        is_compiled = BACKEND == "jax" and not repeated
        # Constants of a program that is compiled for them would be copied.
        self._held = [*base.variables, *self._stacked.values()] * is_compiled
        self._run_mixed = compiled(self._compute_mixed, is_compiled)
        self._run_alone = compiled(self._compute_alone, is_compiled)

    def record(self, batch: Any) -> None:
        """Lets a `tf.function` within the model record the model as it is.

        Otherwise it would keep computing with the adapters of the trial.
        """
        if BACKEND == "tensorflow":
            self._answer([], batch)

    def mixed(
        self, batch: Any, rows: np.ndarray, places: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The bank's outputs, each example with its row.

        Args:
            batch: Inputs of the model.
            rows: Integer array, the row of each example.
            places: The examples whose outputs are returned. Defaults to
                `None`, for all.
        """
        for name, variable in self._stacked.items():
            variable.assign(self.table[name])
        values = [v.value for v in self._held]
        row = ops.convert_to_tensor(rows, "int32")
        return _to_numpy(self._run_mixed(values, batch, row), places)

    def alone(
        self, batch: Any, row: int, places: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The model's outputs with one row for all examples, not by the bank.

        See `mixed`.
        """
        values = [v.value for v in self._held]
        own = {name: value[row] for name, value in self.table.items()}
        strength = np.float32(row != BASE)
        return _to_numpy(self._run_alone(values, own, strength, batch), places)

    def _compute_mixed(
        self, values: list[Tensor], batch: Any, row: Tensor
    ) -> Any:
        examples = BankExamples(self.stack_of, row, ROWS, self.repeated)
        mapping = list(zip(self._held, values, strict=True))
        with per_example.computing_for(examples):
            outputs = self._answer(mapping, batch)
        examples.check_outputs(outputs)
        if not self.repeated:
            # Generated ids are outputs, not adapter ids.
            check_markable(outputs)
        self.examples = examples
        return outputs

    def _compute_alone(
        self, values: list[Tensor], own: dict, strength: Tensor, batch: Any
    ) -> Any:
        adapted = self.structure.adapted.values()
        mapping = [
            *zip(self._held, values, strict=True),
            *((v, own[n]) for n, v in self.structure.variables.items()),
            *((layer.ether.runtime_strength, strength) for layer in adapted),
        ]
        return self._answer(mapping, batch)

    def _answer(self, mapping: list, batch: Any) -> Any:
        # In the scope, seeds and statistics don't change.
        with keras.StatelessScope(mapping) as scope:
            before = dict(scope.state_mapping)
            with no_gradient(), same_draws():
                outputs = self.answer(batch)
        self._check_keeps_nothing(before, scope.state_mapping)
        return outputs

    def _check_keeps_nothing(self, before: dict, after: dict) -> None:
        """Refuses a layer that one call would change for the next."""
        for variable in self.base.variables:
            key = id(variable)
            is_seed = variable.name == SEED
            if not is_seed and after.get(key) is not before.get(key):
                raise per_example.NoExamplesError(
                    f"Model '{self.base.name}' changes its variable "
                    f"'{variable.path}' in a call, so an adapter's answer "
                    "would depend on the adapters of earlier calls."
                )


def _random_rows(
    value: np.ndarray, is_head: bool, rng: np.random.Generator
) -> np.ndarray:
    """Values of all rows: the base's, then random values with an effect."""
    noise = rng.normal(size=(ROWS, *value.shape)).astype("float32")
    noise[BASE] = 0.0
    if not is_head:
        return noise
    size = float(np.sqrt(np.mean(np.square(value, dtype="float32")))) or 1.0
    return value.astype("float32") + size * noise


def _to_numpy(outputs: Any, places: np.ndarray | None) -> list[np.ndarray]:
    """The parts of outputs for the examples at `places`, by default all."""
    found = []
    for y in parts_of(outputs):
        y = ops.convert_to_tensor(y)
        if places is not None:
            y = ops.take(y, places, axis=0)
        if keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(y.dtype)
        ):
            y = ops.cast(y, "float32")
        found.append(to_numpy(y))
    return found
