"""The rows of a bank's model by the names of adapters, in files too."""

import json
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.bank.rows import NO_ID
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import tensors_of
from keras_ether.ops.backend import snapshot
from keras_ether.ops.each_example import set_row
from keras_ether.ops.each_example import take_rows
from keras_ether.ops.values import to_numpy
from keras_ether.surgery.targets import shorten


class NamedRows(keras.Model):
    """A model with rows of adapters, whose weights files name them.

    A subclass has the attributes of `BankModel`.
    """

    def put(
        self,
        name: str,
        values: dict[str, Any],
        covered: Iterable[str],
        evict: bool,
    ) -> int:
        """Puts an adapter in a row; it may replace or evict another one.

        Returns:
            Its id.
        """
        row = self.table.make_room(name, evict)
        try:
            # A graph may run without the bank's lock: a removed adapter has no
            # id.
            self.publish_ids()
            self.write(row, values)
        except BaseException:
            # The row now belongs to no adapter.
            self.table.release(name, is_lost=True)
            self.publish_ids()
            raise
        self.table.assign(name, row, covered)
        self.publish_ids()
        return int(self.table.ids[row])

    def publish_ids(self) -> None:
        """Sets the variable from which compiled code reads the valid ids."""
        self.__dict__["_mark"] += np.int32(1)
        self.current.assign(self.marked_ids())
        self.remember()

    def marked_ids(self) -> np.ndarray:
        """The value of `current` if the values belong to the bank's names."""
        return np.append(self.table.ids, self._mark)

    def write(self, row: int, values: dict[str, Any]) -> None:
        """Sets a row by tensor name; zeros where `values` has none."""
        variables = tensors_of(self.stacks)
        rows = [
            values.get(name, np.zeros(variable.shape[1:], "float32"))
            for name, variable in variables.items()
        ]
        set_row(list(variables.values()), row, rows)
        if self.optimizer is not None:
            self.optimizer.restart_row(row)

    def values(self, row: int) -> dict[str, np.ndarray]:
        """The values of a row by tensor name."""
        index = ops.full((1,), row, "int32")
        return {
            name: to_numpy(take_rows(variable, index)[0])
            for name, variable in tensors_of(self.stacks).items()
        }

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for key, value in self._described().items():
            store[key] = np.frombuffer(json.dumps(value).encode(), "uint8")

    def _described(self) -> dict[str, Any]:
        """What a file states besides values."""
        return {"names": self._named(), "stacks": self._stacked()}

    def _named(self) -> dict[str, list]:
        """By name the row, and the paths of the layers that it covers."""
        return {
            name: [self.table.row(name), list(self.table.covered[name])]
            for name in self.table.names
        }

    def _stacked(self) -> list[str]:
        """The tensors of each stack, and how its layer is adapted.

        Keras stores the stacks by their position.
        """
        configs = [f" ({adapter.config})" for _, adapter in self._adapters]
        # Then come the stacks of the head.
        configs += [""] * len(self._heads)
        return [
            ", ".join(stack.tensors) + config
            for stack, config in zip(self.stacks, configs, strict=True)
        ]

    def load_own_variables(self, store: Any) -> None:
        # Not the ids: those of before have to end.
        read = {
            key: json.loads(bytes(np.asarray(store[key], "uint8")))
            for key in ("names", "stacks")
            if key in store.keys()  # noqa: SIM118, it is no dictionary
        }
        self.__dict__["_read"] = read
        own = self._described()
        # Older files have only names.
        if not self._is_loading and {"stacks": own["stacks"]} | read != own:
            # Of a model around this one. Keras goes on to load the values.
            self.current.assign(np.full(self.current.shape, NO_ID))
            raise ValueError(
                "The file has other adapters than the bank, in other rows or "
                "of other layers. `load_weights` of the bank's own model loads "
                "names and weights."
            )

    def load_weights(
        self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """See `keras.Model.load_weights`. It loads the adapters' names too.

        Ids of before end. The model that the bank was made of stays as it is,
        and so does the row of the base.

        Raises:
            ValueError: if the file names no adapters, or has another base; if
                its bank adapts other layers, or in another way; if values would
                be skipped, by `skip_mismatch` or `objects_to_skip`; or while
                `fit`, `evaluate` or `predict` of this model runs.
        """
        skipped = kwargs.get("objects_to_skip")
        if skip_mismatch or skipped is not None:
            # Names would get the rows of others.
            raise ValueError(
                "`load_weights` of the model of an `AdapterBank` loads all "
                "names and values of a file. Received: "
                f"skip_mismatch={skip_mismatch!r}, objects_to_skip={skipped!r}"
            )
        with self.access.alone():
            self._check_layers()
            self.table.check_no_loop()
            optimizer = self.optimizer
            state = [] if optimizer is None else optimizer.variables
            before = [(v, snapshot(v)) for v in [*self.variables, *state]]
            own = {id(v) for v in self.base.variables}
            row_of_base = self.values(BASE)
            self.__dict__.update(_read={}, _is_loading=True)
            try:
                if optimizer is not None:
                    # The file may have no state, or it is loaded now.
                    optimizer.restart()
                super().load_weights(filepath, **kwargs)
                self._check_adapters_are_same()
                self._check_base_is_same(before)
            except Exception:
                for variable, value in before:
                    variable.assign(value)
                raise
            finally:
                self.__dict__["_is_loading"] = False
            for variable, value in before:
                if id(variable) in own:
                    variable.assign(value)
            self.write(BASE, row_of_base)
            self.table.replace_all(self._read["names"])
            self.publish_ids()

    def _check_adapters_are_same(self) -> None:
        """Raises a `ValueError` if the file that was read has other stacks."""
        if "names" not in self._read:
            raise ValueError(
                "The file does not name the adapter of each row: "
                "`save_weights` of a bank's model did not write it."
            )
        own = self._stacked()
        found = self._read.get("stacks", own)
        if found != own:
            raise ValueError(
                "The bank adapts other layers than the file, or in another "
                "way or order. Expected: "
                f"{shorten([y for y in own if y not in found] or own)}. "
                "Received: "
                f"{shorten([y for y in found if y not in own] or found)}"
            )
        covered = {p for _, own in self._read["names"].values() for p in own}
        unknown = sorted(covered - set(self.structure.adapted))
        if unknown:
            raise ValueError(
                f"The file has adapters for {shorten(unknown)}, but the bank "
                f"only for {shorten(self.structure.adapted)}."
            )

    def _check_base_is_same(self, before: list[tuple[Any, Any]]) -> None:
        """Raises a `ValueError` if frozen weights of the base have changed."""
        frozen = {id(v) for v in self.base.weights}
        frozen -= {id(v) for v in self.structure.variables.values()}
        frozen -= {
            id(v)
            for layer in self.structure.adapted.values()
            for v in layer.ether.variables
        }
        for variable, value in before:
            if id(variable) in frozen and not np.array_equal(
                to_numpy(variable), to_numpy(value), equal_nan=True
            ):
                raise ValueError(
                    f"The file has another base: weight '{variable.path}' "
                    "differs from the bank's."
                )

    def set_weights(self, weights: list[Any]) -> None:
        places = [id(v) for v in self.weights]
        ids = weights[places.index(id(self.current))]
        with self.access.alone():
            if not np.array_equal(ids, self.marked_ids()):
                raise ValueError(
                    "These weights do not belong to the adapters in the bank. "
                    "`load_weights` loads names and weights."
                )
            # The base is not the bank's to change.
            own = {id(v): v for v in self.base.variables}
            super().set_weights(
                [
                    to_numpy(own[place]) if place in own else value
                    for place, value in zip(places, weights, strict=True)
                ]
            )
