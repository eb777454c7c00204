"""`AdapterBank`: adapters by name, each in a row of the bank's model."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether.adapters import kinds
from keras_ether.adapters import per_example
from keras_ether.bank import generating
from keras_ether.bank import probe
from keras_ether.bank import row_contents
from keras_ether.bank import row_updates
from keras_ether.bank.bank_model import BankModel
from keras_ether.bank.stacks import BASE
from keras_ether.bank.stacks import fill
from keras_ether.bank.structure import structure_of
from keras_ether.ops.each_example import set_row
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.values import integer
from keras_ether.saving import adapter_file
from keras_ether.saving import atomic_write
from keras_ether.types import Model
from keras_ether.types import Variable

EMPTY = float("nan")


class AdapterBank:
    """Many adapters on one base; each example of a batch uses its own.

    The bank stacks the adapters' vectors, a row for each adapter. An integer
    for each example selects the row that takes the place of the model's own
    vectors. Every adapter also has its own head. The base is shared, and the
    model passed works as before. Row 0 is the base itself, with the head that
    the model has when the bank is made. Nothing is compiled again when adapters
    are added or removed (Bini et al., ICML 2024, sections 1 and 3).

    Args:
        model: A Keras model that `keras_ether.apply` or
            `keras_ether.load_adapter` has adapted. It determines
            which layers the bank's adapters may cover, their method and number
            of blocks, and the shape of their heads.
        capacity: Integer, the largest number of adapters.

    Attributes:
        model: A Keras model. It takes a dictionary of the inputs of `model`,
            under the key `"inputs"` if they are not a dictionary, and of
            `adapter_id`, one int32 per example. Use it by `predict`,
            `evaluate`, `fit`, `export` or a call. Outputs for an id without an
            adapter are NaN.
        capacity: The argument.

    Raises:
        ValueError: if `model` has no adapter, if `capacity` is not a positive
            integer, or if a layer can't compute each example separately: its
            kernel is float8 or read from outside of its call, its method has no
            thin factors (`"oft"`, `"naive"`), the leading axis of its inputs is
            not the batch, or it is a layer of the head with statistics of the
            batch. The model then stays as it was. Sparse inputs of an adapted
            layer are refused at the call.

    Example:

    >>> inputs = keras.Input((16,))
    >>> base = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    >>> bank = keras_ether.AdapterBank(keras_ether.apply(base), capacity=8)
    >>> bank.add("alice")
    1
    >>> x = {
    ...     "inputs": np.ones((2, 16), "float32"),
    ...     "adapter_id": bank.ids(["alice", None]),
    ... }
    >>> bank.model.predict(x, verbose=0).shape
    (2, 4)
    """

    def __init__(self, model: Model, capacity: int) -> None:
        rows = integer(capacity)
        if rows is None or rows < 1:
            raise ValueError(
                "`capacity` must be a positive integer. Received: "
                f"capacity={capacity!r}"
            )
        self.capacity = rows
        self._structure = structure_of(model)
        for layer in internals.everything_in(model):
            # Adapted layers do this themselves.
            if layer.variables and not kinds.is_adapted(layer):
                per_example.keep_in_remat(layer)
        with internals.strategy_scope(model):
            stacks = self._structure.stacks(rows + 1)
            self.model = BankModel(model, stacks, rows + 1)
        self._stacks = list(stacks.values())
        probe.check_every_layer(self.model, self._structure)
        self._lock = threading.RLock()
        # The least recently used adapter comes first.
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._covered: dict[str, tuple[str, ...]] = {}
        # The row that was freed longest ago is taken first.
        self._free = list(range(1, rows + 1))
        self._digests: dict[int, np.ndarray] = {}
        self._generator: generating.Generator | None = None

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order of their ids."""
        with self._lock:
            return sorted(self._rows, key=self._rows.__getitem__)

    def add(self, name: str, source: Any = None, evict: bool = False) -> int:
        """Adds an adapter, or replaces the one that has the name already.

        A replacement keeps the id. Don't replace an adapter during a call that
        uses it.

        Args:
            name: String, the adapter's name.
            source: String or `PathLike`, a file that `keras_ether.save_adapter`
                wrote; an adapted model; or `None`, the default, for the start
                that `keras_ether.apply` gives, with the base's head. Layers
                that the bank covers and the adapter does not cover compute as
                in the base.
            evict: Whether a full bank removes the least recently used adapter.
                Defaults to `False`.

        Returns:
            The adapter's id.

        Raises:
            ValueError: if the bank is full, or the adapter does not fit: it was
                trained over another base, has another method, other blocks or
                another head, or covers layers that the bank does not. The bank
                then stays as it was.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(
                "An adapter's name must be a string that is not empty. "
                f"Received: name={name!r}"
            )
        with self._lock:
            if source is None:
                base_head = self._values(BASE)
                covered = tuple(self._structure.adapted)
                values = row_contents.fresh_values(
                    self._structure,
                    {n: base_head[n] for n in self._structure.head},
                )
            else:
                content = row_contents.content_from(source, name)
                row_contents.check_fits(
                    content, self._structure, self._digest, name
                )
                values = row_contents.values_for(content, self._structure)
                covered = row_contents.covered_by(content)
            row = self._row_for(name, evict)
            self._fill(row, values)
            self._rows[name] = row
            self._rows.move_to_end(name)
            self._covered[name] = covered
            return row

    def remove(self, name: str) -> None:
        """Removes an adapter. Its id gives NaN until another adapter has it.

        Raises:
            ValueError: if there is no such adapter.
        """
        with self._lock:
            row = self._row(name)
            del self._rows[name], self._covered[name]
            self._empty(row)
            self._free.append(row)

    def ids(self, names: Sequence[str | None]) -> np.ndarray:
        """The ids of adapters, one per example.

        Args:
            names: List of names; `None` stands for the base.

        Returns:
            Int32 array of shape `(len(names),)`.

        Raises:
            ValueError: if there is no such adapter.
        """
        if isinstance(names, str):
            raise ValueError(
                "`names` must be a list of names, one per example. Received: "
                f"names={names!r}"
            )
        with self._lock:
            found = [BASE if n is None else self._row(n) for n in names]
            for name in names:
                if name is not None:
                    self._rows.move_to_end(name)
        return keras.ops.convert_to_numpy(
            keras.ops.array(found, "int32")
        ).reshape(len(found))

    def save(self, name: str, filepath: str | os.PathLike) -> None:
        """Saves one adapter with its head, as `keras_ether.save_adapter` does.

        Args:
            name: String, the adapter's name.
            filepath: String or `PathLike`, ending in `".safetensors"`.

        Raises:
            ValueError: if there is no such adapter, or a value is not finite.
            OSError: if the folder is missing or can't be written to.
        """
        filepath = adapter_file.check_name(filepath)
        atomic_write.check_place(filepath)
        with self._lock:
            content = row_contents.content_of_row(
                self._structure,
                self._covered.get(name, ()),
                self._values(self._row(name)),
                self._digest,
            )
        adapter_file.write(filepath, content)

    def generate(
        self, prompts: Any, adapters: Sequence[str | None], **kwargs: Any
    ) -> Any:
        """Generates text, each prompt with its own adapter.

        Args:
            prompts: List, or dictionary of lists or arrays, as the `generate`
                of the model takes it.
            adapters: List of names, one per prompt; `None` stands for the base.
            **kwargs: Further arguments of the model's `generate`, `max_length`
                and `stop_token_ids`.

        Returns:
            The result of the model's `generate`.

        Raises:
            ValueError: if the model can't generate, if there is no such
                adapter, or if there is not one name per prompt.
        """
        self.model.check_base()
        if self._generator is None:
            self._generator = generating.Generator(self.model)
        return self._generator.generate(prompts, self.ids(adapters), kwargs)

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise ValueError(
                f"The bank has no adapter '{name}'. It has {self.names}."
            )
        return self._rows[name]

    def _row_for(self, name: str, evict: bool) -> int:
        """The row for an adapter of this name."""
        if name in self._rows:
            return self._rows[name]
        if not self._free and not evict:
            raise ValueError(
                f"The bank is full: it has room for {self.capacity} adapters. "
                "Remove one, or pass `evict=True` to remove the least "
                f"recently used one, '{next(iter(self._rows))}'."
            )
        if not self._free:
            self.remove(next(iter(self._rows)))
        return self._free.pop(0)

    def _fill(self, row: int, values: dict[str, Any]) -> None:
        """Sets a row. Until it is complete, outputs for its id are NaN."""
        self._empty(row)
        fill(self._stacks, row, values)
        row_updates.copy_moments(
            getattr(self.model, "optimizer", None),
            self.capacity + 1,
            row,
            BASE,
        )
        set_row([self.model.marks], row, [1.0])

    def _empty(self, row: int) -> None:
        set_row([self.model.marks], row, [EMPTY])

    def _values(self, row: int) -> dict[str, np.ndarray]:
        return {
            name: value
            for stack in self._stacks
            for name, value in stack.row(row).items()
        }

    def _digest(self, variable: Variable) -> np.ndarray:
        if id(variable) not in self._digests:
            self._digests[id(variable)] = fingerprint(variable)
        return self._digests[id(variable)]
