"""The trial of a bank: mixed batches compared with each adapter alone.

Shapes don't tell whether a model computes each example separately. So the trial
runs the model with several random adapters and heads in one batch. It compares
the outputs with those of each adapter alone, computed with the model's own
variables and without the bank's code. If they agree within rounding, in batches
of two small sizes and of the size of the real batch, the model has passed.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops
from keras import tree

from keras_ether.adapters import per_example
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import Asked
from keras_ether.bank.trial_runs import ROWS
from keras_ether.bank.trial_runs import Runs

# In a batch of 5 or more, all rows occur, in no order that a model might keep
# when it turns or sorts its examples.
PATTERN = (2, 0, 1, 3, 3, 1, 2, 2, 0, 3, 1)
SIZES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43)

# Relative errors: of two ways to compute one thing, in float32 and where 16
# bits or integer kernels round it; and there of one way with other neighbours.
FINE, COARSE, NEIGHBOURS = 1e-3, 0.3, 0.05
# Where numbers are rounded, near ties among experts may be decided otherwise
# for so many of the examples.
STRAYS = 0.1


class Trial:
    """Tests whether a model computes each example of a batch separately.

    Args:
        runs: The `Runs` of the model.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.base = runs.base
        self.structure = runs.structure
        self._first: list[np.ndarray] = []

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
            if small in self.runs.examples.axes:
                continue
            asked.append(self.runs.examples.asked)
            if len(asked) == 2:
                return asked[0], small
        raise per_example.NoExamplesError(
            f"Model '{self.base.name}' has axes of all lengths in {SIZES}, so "
            "no batch size is left for a trial."
        )

    def run(self, inputs: Any, size: int) -> None:
        """Tests the model on a batch of one size. See `run_small`."""
        batch = _repeated(inputs, size)
        rows = np.resize(PATTERN, size)
        self.runs.record(batch)
        mixed = self.runs.mixed(batch, rows)
        self._check_asked(self.runs.examples.asked)
        if not self._are_apart(mixed, batch, rows):
            raise per_example.NoExamplesError(self._problem(batch, rows))
        if self.runs.draws:
            return
        # Each example elsewhere in the batch, without the other half.
        for half in (np.arange(0, size, 2), np.arange(1, size, 2)):
            order = np.resize(half[::-1], size)
            self._check_same(
                self.runs.mixed(_rows_of(batch, order), rows[order]),
                [y[order] for y in mixed],
                size,
            )
        # The first examples are the same in batches of all sizes.
        few = np.arange(SIZES[0])
        first = [y[few] for y in mixed]
        if not self._first:
            self._first = first
            if size not in SIZES:
                self._first = self.runs.mixed(_rows_of(batch, few), rows[few])
        self._check_same(first, self._first, size)

    def _check_same(
        self, found: list[np.ndarray], wanted: list[np.ndarray], size: int
    ) -> None:
        """Refuses a model whose outputs differ with the other examples."""
        if not are_equal(found, wanted, self._neighbours):
            raise per_example.NoExamplesError(
                f"Model '{self.base.name}' does not compute each example of a "
                f"batch separately: in a batch of {size} an example's output "
                "changed with the other examples. The model may average over "
                "the batch, have experts with a capacity, or draw random "
                "numbers. A bank can't be made of it."
            )

    def _check_effect(self, inputs: Any) -> None:
        """Refuses a model whose outputs are the same with all adapters."""
        batch = _repeated(inputs, SIZES[0])
        base = self.runs.alone(batch, BASE)
        others = (self.runs.alone(batch, r) for r in range(1, ROWS))
        if all(are_equal(y, base, 0.0) for y in others):
            raise per_example.NoExamplesError(
                f"The outputs of model '{self.base.name}' do not depend on its "
                "adapters, so a trial can't test them. Pass your own batch as "
                "`trial`. (A `tf.function` within the model still runs the "
                "code that it traced before.)"
            )

    def _are_apart(
        self, mixed: list[np.ndarray], batch: Any, rows: np.ndarray
    ) -> bool:
        """Whether the outputs of a mixed batch are those of each row alone."""
        alone = of_each(
            rows, lambda row, places: self.runs.alone(batch, row, places)
        )
        if not are_equal(mixed, alone, self._tolerance):
            return False
        if self._tolerance == FINE:
            return True
        same = of_each(
            rows,
            lambda row, places: self.runs.mixed(
                batch, np.full_like(rows, row), places
            ),
        )
        return are_equal(mixed, same, self._neighbours)

    def _check_asked(self, asked: Counter[Asked]) -> None:
        missing = self.structure.lookups - set(asked)
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
        paths = [s.layer_path for s in self.runs.stack_of.values()]
        table = self.runs.table
        found = (
            p
            for p in dict.fromkeys(paths)
            if self._mixes(p, table, batch, rows)
        )
        first = next(found, None)
        where = "its layers together" if first is None else f"layer '{first}'"
        return (
            f"Model '{self.base.name}' does not compute each example of a "
            f"batch separately: with several adapters in a batch, {where} gave "
            "other outputs than with each adapter alone. The model may reorder "
            "the examples, or move the batch axis. Leave the layer out with "
            "`exclude` of `keras_ether.apply`."
        )

    def _mixes(
        self,
        path: str,
        table: dict[str, np.ndarray],
        batch: Any,
        rows: np.ndarray,
    ) -> bool:
        """Whether answers are wrong if only one layer's adapters differ."""
        own = {
            name
            for stack in self.runs.stack_of.values()
            if stack.layer_path == path
            for name in stack.tensors
        }
        self.runs.table = {
            name: value if name in own else np.stack([value[1]] * ROWS)
            for name, value in table.items()
        }
        rows = np.where(rows == BASE, 1, rows)
        return not self._are_apart(self.runs.mixed(batch, rows), batch, rows)


def _repeated(inputs: Any, size: int) -> Any:
    """The first examples, or some again, in a batch of a size."""
    length = int(tree.flatten(inputs)[0].shape[0])
    return _rows_of(inputs, np.arange(size) % length)


def _rows_of(inputs: Any, places: np.ndarray) -> Any:
    return tree.map_structure(
        lambda x: ops.take(ops.convert_to_tensor(x), places, axis=0), inputs
    )


def of_each(
    rows: np.ndarray, outputs: Callable[[int, np.ndarray], list[np.ndarray]]
) -> list[np.ndarray]:
    """The outputs of all examples, each computed with its own row.

    Args:
        rows: Integer array, the row of each example.
        outputs: Function from a row, and from places in the batch, to the
            outputs there. All outputs of all rows might not fit in memory.
    """
    places = np.argsort(rows, kind="stable")
    own = [
        outputs(int(row), places[rows[places] == row])
        for row in np.unique(rows)
    ]
    back = np.argsort(places)
    return [np.concatenate(parts)[back] for parts in zip(*own, strict=True)]


def are_equal(
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
        strays = np.mean(of_example > tolerance * size)
        if strays > (STRAYS if tolerance > FINE else 0.0):
            return False
    return True
