"""A change of a variable's value, and backups of former values."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_ether.ops import memory
from keras_ether.ops.values import to_numpy
from keras_ether.types import Variable

# Larger values are stored in a temporary file until a transaction ends.
LARGEST_IN_MEMORY = 2**20


class Value:
    """Sets the value of a variable.

    `value` is an array, or a function that computes it when it is assigned.
    """

    def __init__(
        self, variable: Variable, value: Any, backup: "Backup"
    ) -> None:
        self.variable, self.value, self.backup = variable, value, backup
        self.before: list[Callable[[], Any]] = []

    def do(self) -> None:
        value = self.value() if callable(self.value) else self.value
        self.before = [self.backup.keep(self.variable)]
        self.variable.assign(value)

    def undo(self) -> None:
        if self.before:
            self.variable.assign(self.before.pop()())


class Backup:
    """Values from before a transaction.

    Large values are in a temporary file: in memory, the values of a whole model
    would need as much memory as the model.

    Attributes:
        file: The file, or `None` as long as it is not needed.
    """

    def __init__(self) -> None:
        self.file: Any = None

    def keep(self, variable: Variable) -> Callable[[], Any]:
        """Stores the current value, and returns a function that returns it."""
        value = variable.value
        # An array spread over several processes can't be copied to a host, and
        # need not be: JAX does not change arrays.
        if not getattr(value, "is_fully_addressable", True):
            return lambda: value
        array = to_numpy(variable)
        if array.nbytes <= LARGEST_IN_MEMORY:
            return lambda: array
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115
        # Of the variable before this one.
        memory.return_freed()
        start, size = self.file.seek(0, 2), array.nbytes
        self.file.write(array.reshape(-1).view("uint8").data)
        shape, dtype = array.shape, array.dtype

        def read() -> np.ndarray:
            self.file.seek(start)
            data = bytearray(self.file.read(size))
            return np.frombuffer(data, dtype).reshape(shape)

        return read
