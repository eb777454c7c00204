"""The training step that runs now, for its losses and its optimizer."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from keras import ops

from keras_ether.types import Tensor


@dataclass(frozen=True)
class Step:
    """The examples that train in a step.

    Attributes:
        row: Int32 tensor of shape `(batch,)`, the row of each example; the
            base's for ids without an adapter.
        trains: Boolean tensor of the same shape: all but the base's.
    """

    row: Tensor
    trains: Tensor

    def _same(self) -> Tensor:
        """Whether two examples have the same adapter, `(batch, batch)`."""
        return ops.equal(self.row[:, None], self.row[None, :])

    def sum_of_own(self, values: Tensor) -> Tensor:
        """For each example the sum over all examples of its adapter.

        NaN reaches no other adapter.
        """
        return ops.sum(ops.where(self._same(), values[None, :], 0), axis=1)

    def is_first(self) -> Tensor:
        """Whether an example is the first of its adapter, and trains it."""
        index = ops.arange(ops.shape(self.row)[0])
        before = ops.logical_and(self._same(), index[None, :] < index[:, None])
        return ops.logical_and(
            self.trains, ops.logical_not(ops.any(before, axis=1))
        )


class _Current(threading.local):
    step: Step | None = None


_CURRENT = _Current()


def current() -> Step | None:
    """The step of this thread, `None` outside of one."""
    return _CURRENT.step


@contextlib.contextmanager
def running(step: Step) -> Iterator[None]:
    """A context in which `current` answers a step."""
    before = _CURRENT.step
    _CURRENT.step = step
    try:
        yield
    finally:
        _CURRENT.step = before
