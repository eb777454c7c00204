"""Which adapter has which row of a bank, by name and by id.

An id is `generation * rows + row`. Every new adapter in a row gets the row's
next generation, so no id is used twice.
"""

import contextlib
import difflib
import threading
from collections import Counter
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from keras_ether.bank.structure import BASE

NO_ID = -1
LARGEST = np.iinfo("int32").max


class Rows:
    """The rows of a bank, without their values.

    Args:
        rows: Integer, number of rows, the base's included.

    Attributes:
        covered: Dictionary from name to the paths of the layers that the
            adapter covers.
        ids: Int32 array, the current id of each row, `NO_ID` of a free one.
    """

    def __init__(self, rows: int) -> None:
        self.ids = np.full(rows, NO_ID, "int32")
        self.ids[BASE] = BASE
        self._generations = np.zeros(rows, "int64")
        # Free rows, the longest unused first.
        self._free = list(range(1, rows))
        # The least recently used adapter is first.
        self._row_of: OrderedDict[str, int] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._loops = 0
        self._lock = threading.RLock()
        self.covered: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> list[str]:
        """The adapters' names, in the order of their rows."""
        with self._lock:
            return sorted(self._row_of, key=self._row_of.__getitem__)

    def row(self, name: str | None) -> int:
        """The row of an adapter, or of the base.

        Raises:
            ValueError: if there is no such adapter.
        """
        if name is None:
            return BASE
        if name not in self._row_of:
            near = difflib.get_close_matches(str(name), self._row_of, 3, 0.5)
            known = f"Similar names: {near}" if near else f"It has {self.names}"
            raise ValueError(f"The bank has no adapter '{name}'. {known}.")
        return self._row_of[name]

    def ids_of(self, names: Sequence[str | None]) -> np.ndarray:
        """The ids of adapters, which are used now. See `row`."""
        with self._lock:
            rows = [self.row(name) for name in names]
            for name in names:
                if name is not None:
                    self._row_of.move_to_end(name)
            return self.ids[np.asarray(rows, "int32")]

    @contextlib.contextmanager
    def pinned(self, names: Sequence[str | None]) -> Iterator[np.ndarray]:
        """A context in which adapters, whose ids it yields, keep their rows."""
        pins = {name for name in names if name is not None}
        with self._lock:
            ids = self.ids_of(names)
            self._pins.update(pins)
        try:
            yield ids
        finally:
            with self._lock:
                self._pins.subtract(pins)
                # Names of removed adapters must not accumulate.
                self._pins += Counter()

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[np.ndarray], None]]:
        """A context for a loop of Keras, whose data hold ids.

        Yields:
            Function of the ids in a batch, whose adapters keep their rows until
            the loop ends. It raises a `ValueError` as `check_ids` does.
        """
        held: set[int] = set()

        def hold(ids: np.ndarray) -> None:
            with self._lock:
                new = set((self.check_ids(ids) % len(self.ids)).tolist()) - held
                if new:
                    held.update(new)
                    names = [n for n, row in self._row_of.items() if row in new]
                    pins.enter_context(self.pinned(names))

        with contextlib.ExitStack() as pins:
            with self._lock:
                self._loops += 1
            try:
                yield hold
            finally:
                with self._lock:
                    self._loops -= 1
                    # A thread may read data still.
                    held.update(range(len(self.ids)))

    def check_no_loop(self) -> None:
        """Raises a `ValueError` if a loop runs, whose ids must not end."""
        if self._loops:
            raise ValueError(
                "`load_weights` of the model of an `AdapterBank` ends all ids, "
                "so it can't run while `fit`, `evaluate` or `predict` of that "
                "model does, whose data hold ids."
            )

    def make_room(self, name: str, evict: bool) -> int:
        """The row for an adapter that will be added.

        An adapter of that name keeps its row until `assign`. A full bank
        evicts another adapter.

        Args:
            name: String.
            evict: Whether the least recently used adapter that is not in use
                may go.

        Raises:
            ValueError: if there is no free row, or no id. Nothing has changed
                then.
        """
        with self._lock:
            if name in self._row_of:
                return self._row_of[name]
            if self._free:
                self.next_id(self._free[0])
                return self._free[0]
            if not evict:
                raise ValueError(
                    f"The bank is full: it has room for {len(self._row_of)} "
                    "adapters. Remove one, or pass `evict=True` to remove the "
                    f"least recently used one, '{next(iter(self._row_of))}'."
                )
            idle = (name for name in self._row_of if not self._pins[name])
            victim = next(idle, None)
            if victim is None:
                raise ValueError(
                    f"The bank is full, and all of its {len(self._row_of)} "
                    "adapters are in use, by `bank.using`, a call, or data of "
                    "a running `fit`, `evaluate` or `predict`."
                )
            row = self._row_of[victim]
            self.next_id(row)
            self.release(victim)
            return row

    def assign(self, name: str, row: int, covered: Iterable[str]) -> None:
        """Gives a row to an adapter; a replacement keeps the id."""
        with self._lock:
            if self._row_of.get(name) != row:
                self.ids[row] = self.next_id(row)
                self._generations[row] += 1
                self._free.remove(row)
                self._row_of[name] = row
            self._row_of.move_to_end(name)
            self.covered[name] = tuple(covered)

    def release(self, name: str, is_lost: bool = False) -> None:
        """Frees the row of an adapter and ends its id.

        Args:
            name: String.
            is_lost: Whether its values are, so that it goes even if it is in
                use. Defaults to `False`.

        Raises:
            ValueError: if there is no such adapter, or it is in use.
        """
        with self._lock:
            if is_lost and name not in self._row_of:
                return
            row = self.row(name)
            if self._pins[name] and not is_lost:
                raise ValueError(
                    f"Adapter '{name}' is in use, by `bank.using`, a call, or "
                    "data of a running `fit`, `evaluate` or `predict`, and "
                    "can't be removed now."
                )
            del self._row_of[name], self.covered[name]
            self.ids[row] = NO_ID
            self._free.append(row)

    def replace_all(self, found: dict[str, tuple[int, Iterable[str]]]) -> None:
        """Replaces all adapters by others, which get new ids."""
        for name in list(self._row_of):
            self.release(name, is_lost=True)
        self._free.sort()
        for name, (row, covered) in found.items():
            self.assign(name, row, covered)

    def next_id(self, row: int) -> int:
        """The id of the next adapter in a row.

        Raises:
            ValueError: if all have been used.
        """
        found = int(self._generations[row]) * len(self.ids) + row
        if found > LARGEST:
            raise ValueError(
                f"All {self._generations[row]} ids of a row of the bank have "
                "been used. Make a new bank."
            )
        return found

    def check_ids(self, ids: np.ndarray) -> np.ndarray:
        """What a caller passes as ids, as int32.

        Raises:
            ValueError: if it is no vector of integers, or one of them is no id
                of an adapter that is in the bank now.
        """
        if ids.ndim != 1:
            raise ValueError(
                "`adapter_id` must be one integer per example, of shape "
                f"(batch,). Received: shape={ids.shape}"
            )
        if ids.dtype.kind not in "iu":
            raise ValueError(
                "`adapter_id` must hold integers, as `bank.ids(names)` returns "
                f"them. Received: dtype={ids.dtype}"
            )
        wide = np.where(ids > LARGEST, NO_ID, ids).astype("int64")
        found = (wide >= 0) & (self.ids[wide % len(self.ids)] == wide)
        if not found.all():
            raise ValueError(
                "`adapter_id` must hold ids of adapters in the bank. An id "
                "ends when its adapter is removed. Received: "
                f"{[int(i) for i in ids[~found][:8]]}"
            )
        return wide.astype("int32")
