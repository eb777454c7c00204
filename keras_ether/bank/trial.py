"""The trial of a bank: mixed batches compared with each adapter alone.

Shapes don't tell whether a model computes each example separately. So the trial
runs the model with several random adapters and heads in one batch. It compares
the outputs with those of each adapter alone, computed with the model's own
variables and without the bank's code. If they agree within rounding, in batches
of two sizes, the model has passed.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
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
# Of axes of unknown size: short for models with a longest sequence, long for
# images.
LENGTHS = (8, 64)
# Relative errors: of two ways to compute one thing, in float32 and where 16
# bits or integer kernels round it; and there of one way with other neighbours.
FINE, COARSE, NEIGHBOURS = 1e-3, 0.3, 0.05


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

    def run(self, inputs: Any) -> Counter[Asked]:
        """Tests the model on inputs of this kind.

        Args:
            inputs: Arrays or tensors in the structure that the model takes,
                of one example or more.

        Returns:
            How often each adapter, and each layer of the head, was asked.

        Raises:
            NoExamplesError: if any example's output differs from that of its
                adapter alone, or if that can't be decided.
        """
        known = {a for v in self.base.variables for a in v.shape}
        known |= {a for x in tree.flatten(inputs) for a in x.shape[1:]}
        asked: list[Counter[Asked]] = []
        for size in SIZES:
            if size in known:
                continue
            batch = _rows_of(inputs, np.arange(size) % _length(inputs))
            self._run_size(batch, np.resize(PATTERN, size))
            if size in self.examples.axes:
                continue
            asked.append(self.examples.asked)
            if len(asked) == 2:
                return asked[0]
        raise per_example.NoExamplesError(
            f"Model '{self.base.name}' has axes of all lengths in {SIZES}, so "
            "no batch size is left for a trial."
        )

    def _run_size(self, batch: Any, rows: np.ndarray) -> None:
        self._record(batch)
        mixed = self._mixed(batch, rows, self.table)
        self._check_asked(self.examples.asked)
        alone = [self._alone(batch, row, self.table) for row in range(ROWS)]
        if all(_equal(y, alone[0], 0.0) for y in alone[1:]):
            raise per_example.NoExamplesError(
                f"The outputs of model '{self.base.name}' do not depend on its "
                "adapters, so a trial can't test them. Pass your own batch as "
                "`trial`. (A `tf.function` within the model still runs the "
                "code that it traced before.)"
            )
        fits = self._are_apart(mixed, alone, batch, rows, self.table)
        if fits and not self.draws:
            order = np.roll(np.arange(len(rows))[::-1], 2)
            turned = self._mixed(
                _rows_of(batch, order), rows[order], self.table
            )
            fits = _equal(turned, [y[order] for y in mixed], self._tolerance)
        if not fits:
            raise per_example.NoExamplesError(self._problem(batch, rows))

    def _record(self, batch: Any) -> None:
        """Lets a `tf.function` within the model record the model as it is.

        Otherwise it would keep computing with the adapters of the trial.
        """
        if BACKEND == "tensorflow":
            self._answer([], batch)

    def _are_apart(
        self,
        mixed: list[np.ndarray],
        alone: list[list[np.ndarray]],
        batch: Any,
        rows: np.ndarray,
        table: dict[str, np.ndarray],
    ) -> bool:
        """Whether the outputs of a mixed batch are those of each row alone."""
        if not _equal(mixed, _picked(alone, rows), self._tolerance):
            return False
        if self._tolerance != COARSE:
            return True
        each = [
            self._mixed(batch, np.full_like(rows, row), table)
            for row in range(ROWS)
        ]
        return _equal(mixed, _picked(each, rows), NEIGHBOURS)

    def _mixed(
        self, batch: Any, rows: np.ndarray, table: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """The bank's outputs, each example with the adapter of its row."""
        for name, variable in self.stacked.items():
            variable.assign(table[name])
        values = [v.value for v in self.held]
        row = ops.convert_to_tensor(rows, "int32")
        return _to_numpy(self._run_mixed(values, batch, row))

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
        self, batch: Any, row: int, table: dict[str, np.ndarray]
    ) -> list[np.ndarray]:
        """The model's outputs with one adapter, without the bank's code."""
        values = [v.value for v in self.held]
        own = {name: value[row] for name, value in table.items()}
        strength = np.float32(row != BASE)
        return _to_numpy(self._run_plain(values, own, strength, batch))

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
        alone = [self._alone(batch, max(row, 1), table) for row in range(ROWS)]
        mixed = self._mixed(batch, rows, table)
        return self._are_apart(mixed, alone, batch, rows, table)


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


def inputs_for(base: Model, symbols: Any) -> Any:
    """Generated inputs that a model takes, or `None`."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        inputs = generated_inputs(symbols, max(SIZES), length, rng)
        try:
            with keras.StatelessScope(), no_gradient():
                base(_rows_of(inputs, np.arange(2)), training=False)
        except Exception:
            # The model may not take this length.
            continue
        return inputs
    return None


def generated_inputs(
    symbols: Any, size: int, length: int, rng: np.random.Generator
) -> Any:
    """Generated inputs of a model.

    Args:
        symbols: The symbolic inputs, with `shape` and `dtype`.
        size: Integer, the number of examples.
        length: Integer, the length of axes of unknown size.
        rng: NumPy generator.
    """

    def invent(x: Any) -> np.ndarray:
        shape = (size, *(length if s is None else s for s in x.shape[1:]))
        dtype = keras.backend.standardize_dtype(x.dtype)
        if keras.backend.is_float_dtype(dtype):
            return rng.normal(size=shape).astype("float32")
        # Ids of any vocabulary, and masks that keep most entries.
        return (rng.random(shape) < 0.75).astype(dtype)

    return tree.map_structure(invent, symbols)


def _length(inputs: Any) -> int:
    return int(tree.flatten(inputs)[0].shape[0])


def _rows_of(inputs: Any, places: np.ndarray) -> Any:
    return tree.map_structure(
        lambda x: ops.take(ops.convert_to_tensor(x), places, axis=0), inputs
    )


def _to_numpy(outputs: Any) -> list[np.ndarray]:
    found = []
    for y in tree.flatten(outputs):
        y = ops.convert_to_tensor(y)
        if keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(y.dtype)
        ):
            y = ops.cast(y, "float32")
        found.append(to_numpy(y))
    return found


def _picked(
    alone: list[list[np.ndarray]], rows: Iterable[int]
) -> list[np.ndarray]:
    """For each example the output of its own row."""
    return [
        np.stack([alone[row][k][i] for i, row in enumerate(rows)])
        for k in range(len(alone[0]))
    ]


def _equal(
    found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float
) -> bool:
    """Whether outputs are equal within rounding, example by example."""
    for y, z in zip(found, wanted, strict=True):
        if y.shape != z.shape:
            return False
        if not np.issubdtype(y.dtype, np.floating):
            wrong = np.mean(y != z)
            # Rounding may decide between near ties.
            if wrong > (0.5 if tolerance > FINE else 0.0):
                return False
            continue
        finite = np.isfinite(y)
        if not np.array_equal(finite, np.isfinite(z)):
            return False
        error = np.where(finite, y - np.where(finite, z, 0), 0)
        rows = (len(error), math.prod(error.shape[1:]))
        error = error.reshape(rows)
        size = np.sqrt(np.mean(np.square(z[finite]))) if finite.any() else 0
        of_example = np.sqrt(np.mean(np.square(error), axis=1))
        if (of_example > tolerance * size).any():
            return False
    return True
