"""The trial of a bank: mixed batches compared with each adapter alone.

Shapes don't tell whether a model computes each example separately. So the trial
runs the model with several random adapters and heads in one batch. It compares
the outputs with those of each adapter alone, computed with the model's own
variables and without the bank's code. If they agree within rounding, in batches
of two small sizes and of the size of the real batch, the model has passed.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_ether.adapters import per_example
from keras_ether.bank.examples import Asked
from keras_ether.bank.examples import BankExamples
from keras_ether.bank.examples import check_markable
from keras_ether.bank.stacks import BASE
from keras_ether.bank.structure import Structure
from keras_ether.bank.trial_outputs import ALL
from keras_ether.bank.trial_outputs import COARSE
from keras_ether.bank.trial_outputs import FINE
from keras_ether.bank.trial_outputs import NEIGHBOURS
from keras_ether.bank.trial_outputs import Places
from keras_ether.bank.trial_outputs import are_equal
from keras_ether.bank.trial_outputs import of_each
from keras_ether.bank.trial_outputs import to_numpy_at
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
# In a batch of 5 or more, all of them occur, in no order that a model might
# keep when it turns or sorts its examples.
PATTERN = (2, 0, 1, 3, 3, 1, 2, 2, 0, 3, 1)
SIZES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)


class Trial:
    """Runs a model with several adapters in a batch, and with each alone.

    Args:
        base: The adapted model.
        structure: The bank's `Structure`.
        answer: Function from inputs to outputs, by way of the model.
        draws: Whether an answer may depend on an example's position in the
            batch, as with a sampler or dropout. Defaults to `False`.
        repeated: See `BankExamples`. Defaults to `False`.
    """

    def __init__(
        self,
        base: Model,
        structure: Structure,
        answer: Callable[[Any], Any],
        draws: bool = False,
        repeated: bool = False,
    ) -> None:
        self.base = base
        self.structure = structure
        self.answer = answer
        self.draws = draws
        self.repeated = repeated
        self.first: list[np.ndarray] = []
        stacks = structure.stacks(ROWS)
        self.stack_of = {id(owner): stack for owner, stack in stacks.items()}
        self.stacked = {
            name: variable
            for stack in stacks.values()
            for name, variable in stack.rows.items()
        }
        rng = np.random.default_rng(0)
        self.table = {
            name: _random_rows(to_numpy(v), name in structure.head, rng)
            for name, v in structure.variables.items()
        }
        # On JAX, Keras's samplers pass only the model's variables.
        is_compiled = BACKEND == "jax" and not repeated
        # Constants of a program that is compiled for them would be copied.
        self.held = [*base.variables, *self.stacked.values()] * is_compiled
        self._run_mixed = compiled(self._compute_mixed, is_compiled)
        self._run_plain = compiled(self._compute_plain, is_compiled)

    def run_small(self, inputs: Any) -> tuple[Counter[Asked], int]:
        """Tests the model on inputs of this kind, in two small batches.

        Args:
            inputs: Arrays or tensors in the structure that the model takes,
                of one example or more.

        Returns:
            Tuple of how often each adapter, and each layer of the head, was
            asked, and the size of the larger batch.

        Raises:
            NoExamplesError: if any example's output differs from that of its
                adapter alone, or if that can't be decided.
        """
        known = {a for v in self.base.variables for a in v.shape}
        known |= {a for x in tree.flatten(inputs) for a in x.shape[1:]}
        asked: list[Counter[Asked]] = []
        for small in SIZES:
            if small in known:
                continue
            self.run(inputs, small)
            if not asked:
                self._check_effect(inputs)
            if small in self.examples.axes:
                continue
            asked.append(self.examples.asked)
            if len(asked) == 2:
                return asked[0], small
        raise per_example.NoExamplesError(
            f"Model '{self.base.name}' has axes of all lengths in {SIZES}, so "
            "no batch size is left for a trial."
        )

    def run(self, inputs: Any, size: int) -> None:
        """Tests the model on a batch of one size. See `run_small`."""
        batch = _rows_of(inputs, np.arange(size) % _length(inputs))
        rows = np.resize(PATTERN, size)
        self._record(batch)
        mixed = self._mixed(batch, rows, self.table)
        self._check_asked(self.examples.asked)
        if not self._are_apart(mixed, batch, rows, self.table):
            raise per_example.NoExamplesError(self._problem(batch, rows))
        if self.draws:
            return
        # Each example elsewhere in the batch, without the other half.
        for half in (np.arange(0, size, 2), np.arange(1, size, 2)):
            order = np.resize(half[::-1], size)
            others = self._mixed(
                _rows_of(batch, order), rows[order], self.table
            )
            wanted = [y[order] for y in mixed]
            if not are_equal(others, wanted, self._neighbours):
                self._refuse_mixing(size)
        # The first examples are the same in batches of all sizes.
        first = [y[: SIZES[0]] for y in mixed]
        if not self.first:
            self.first = first
            if size not in SIZES:
                few = np.arange(SIZES[0])
                self.first = self._mixed(
                    _rows_of(batch, few), rows[few], self.table
                )
        if not are_equal(first, self.first, self._neighbours):
            self._refuse_mixing(size)

    def _refuse_mixing(self, size: int) -> None:
        raise per_example.NoExamplesError(
            f"Model '{self.base.name}' does not compute each example of a "
            f"batch separately: in a batch of {size} an example's output "
            "changed with the other examples. The model may average over the "
            "batch, have experts with a capacity, or draw random numbers. A "
            "bank can't be made of it."
        )

    def _check_effect(self, inputs: Any) -> None:
        """Refuses a model whose outputs are the same with all adapters."""
        batch = _rows_of(inputs, np.arange(SIZES[0]) % _length(inputs))
        base = self._alone(batch, BASE, self.table)
        others = (self._alone(batch, r, self.table) for r in range(1, ROWS))
        if all(are_equal(y, base, 0.0) for y in others):
            raise per_example.NoExamplesError(
                f"The outputs of model '{self.base.name}' do not depend on its "
                "adapters, so a trial can't test them. Pass your own batch as "
                "`trial`. (A `tf.function` within the model still runs the "
                "code that it traced before.)"
            )

    def _record(self, batch: Any) -> None:
        """Lets a `tf.function` within the model record the model as it is.

        Otherwise it would keep computing with the adapters of the trial.
        """
        if BACKEND == "tensorflow":
            self._answer([], batch)

    def _are_apart(
        self,
        mixed: list[np.ndarray],
        batch: Any,
        rows: np.ndarray,
        table: dict[str, np.ndarray],
    ) -> bool:
        """Whether the outputs of a mixed batch are those of each row alone."""
        alone = of_each(
            rows, lambda row, places: self._alone(batch, row, table, places)
        )
        if not are_equal(mixed, alone, self._tolerance):
            return False
        if self._tolerance == FINE:
            return True
        same = of_each(
            rows,
            lambda row, places: self._mixed(
                batch, np.full_like(rows, row), table, places
            ),
        )
        return are_equal(mixed, same, self._neighbours)

    def _mixed(
        self,
        batch: Any,
        rows: np.ndarray,
        table: dict[str, np.ndarray],
        places: Places = ALL,
    ) -> list[np.ndarray]:
        """The bank's outputs at `places`, each example with its row."""
        for name, variable in self.stacked.items():
            variable.assign(table[name])
        values = [v.value for v in self.held]
        row = ops.convert_to_tensor(rows, "int32")
        return to_numpy_at(self._run_mixed(values, batch, row), places)

    def _compute_mixed(
        self, values: list[Tensor], batch: Any, row: Tensor
    ) -> Any:
        examples = BankExamples(self.stack_of, row, ROWS, self.repeated)
        mapping = list(zip(self.held, values, strict=True))
        with per_example.computing_for(examples):
            outputs = self._answer(mapping, batch)
        examples.check_outputs(outputs)
        if not self.repeated:
            # Generated ids are outputs, not adapter ids.
            check_markable(outputs)
        self.examples = examples
        return outputs

    def _alone(
        self,
        batch: Any,
        row: int,
        table: dict[str, np.ndarray],
        places: Places = ALL,
    ) -> list[np.ndarray]:
        """The model's outputs at `places` with one row, not by the bank."""
        values = [v.value for v in self.held]
        own = {name: value[row] for name, value in table.items()}
        strength = np.float32(row != BASE)
        return to_numpy_at(
            self._run_plain(values, own, strength, batch), places
        )

    def _compute_plain(
        self, values: list[Tensor], own: dict, strength: Tensor, batch: Any
    ) -> Any:
        adapted = self.structure.adapted.values()
        mapping = [
            *zip(self.held, values, strict=True),
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
        if not self.draws:
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

    def _check_asked(self, asked: Counter[Asked]) -> None:
        missing = expected(self.structure) - set(asked)
        if not missing:
            return
        path, side = min(missing)
        what = "adapter" if side else "weights"
        raise per_example.NoExamplesError(
            f"Model '{self.base.name}' did not call layer '{path}' within the "
            f"bank, but each example has its own {what}. Either the model does "
            "not use the layer for these inputs, or it reads the layer's "
            "weights without calling it, or a `tf.function` or `jax.jit` "
            "within it runs code that it traced before. Let the model call the "
            "layer, or leave it out with `exclude` or `trainable` of "
            "`keras_ether.apply`."
        )

    @functools.cached_property
    def _tolerance(self) -> float:
        rounds = any(
            layer.quantization_mode is not None
            or layer.compute_dtype in ("bfloat16", "float16")
            for layer in (self.base, *self.structure.layers.values())
        )
        return COARSE if rounds else FINE

    @property
    def _neighbours(self) -> float:
        return min(self._tolerance, NEIGHBOURS)

    def _problem(self, batch: Any, rows: np.ndarray) -> str:
        """A message that names the first layer whose adapters are mixed."""
        paths = dict.fromkeys(s.layer_path for s in self.stack_of.values())
        found = [p for p in paths if not self._is_apart(p, batch, rows)]
        where = f"layer '{found[0]}'" if found else "its layers together"
        return (
            f"Model '{self.base.name}' does not compute each example of a "
            f"batch separately: with several adapters in a batch, {where} gave "
            "other outputs than with each adapter alone. The model may reorder "
            "the examples, or move the batch axis. Leave the layer out with "
            "`exclude` of `keras_ether.apply`."
        )

    def _is_apart(self, path: str, batch: Any, rows: np.ndarray) -> bool:
        """Whether answers are right if only one layer's adapters differ."""
        own = {
            name
            for stack in self.stack_of.values()
            if stack.layer_path == path
            for name in stack.rows
        }
        table = {
            name: value if name in own else np.stack([value[1]] * ROWS)
            for name, value in self.table.items()
        }
        rows = np.where(rows == BASE, 1, rows)
        mixed = self._mixed(batch, rows, table)
        return self._are_apart(mixed, batch, rows, table)


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


def expected(structure: Structure) -> set[Asked]:
    """All lookups that a model's layers can make."""
    return {
        (path, side)
        for path, layer in structure.adapted.items()
        for side in layer.ether.widths
    } | {(path, "") for path in structure.heads}


def _length(inputs: Any) -> int:
    return int(tree.flatten(inputs)[0].shape[0])


def _rows_of(inputs: Any, places: np.ndarray) -> Any:
    return tree.map_structure(
        lambda x: ops.take(ops.convert_to_tensor(x), places, axis=0), inputs
    )
