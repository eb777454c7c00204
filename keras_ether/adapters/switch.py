"""A variable that is held at zero within a block of code."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from keras_ether.ops.backend import snapshot
from keras_ether.types import Tensor
from keras_ether.types import Variable


class Switch:
    """Holds a variable at zero as long as any block of code asks for it.

    Blocks may be nested, and may overlap in several threads or while one of
    them is traced: the variable gets its value back when the last one ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The value that each open block restores, the original one first.
        self._before: list[tuple[object, Tensor]] = []

    @contextlib.contextmanager
    def held_at_zero(self, variable: Variable) -> Iterator[None]:
        """A context in which `variable` is zero."""
        block = object()
        with self._lock:
            self._before.append((block, snapshot(variable)))
            variable.assign(0.0)
        try:
            yield
        finally:
            with self._lock:
                self._end(block, variable)

    def assign(self, variable: Variable, value: Any) -> None:
        """Sets `variable`, as soon as no block holds it at zero."""
        with self._lock:
            if self._before:
                block, _ = self._before[0]
                self._before[0] = (block, value)
            else:
                variable.assign(value)

    @property
    def is_open(self) -> bool:
        """Whether a block of code currently asks for zero."""
        return bool(self._before)

    def _end(self, block: object, variable: Variable) -> None:
        blocks = [opened for opened, _ in self._before]
        place = blocks.index(block)
        _, before = self._before.pop(place)
        if place == len(self._before):
            variable.assign(before)
        else:
            # The next block began within this one: it restores this one's
            # value.
            opened, _ = self._before[place]
            self._before[place] = (opened, before)
