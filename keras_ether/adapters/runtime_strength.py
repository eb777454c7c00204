"""The run-time strength of an adapter, as a variable."""

import contextlib
import threading
from collections.abc import Iterator

import keras

from keras_ether.ops.backend import snapshot
from keras_ether.ops.values import to_numpy
from keras_ether.types import LayerMixin
from keras_ether.types import Tensor
from keras_ether.types import Variable


class RuntimeStrength(LayerMixin):
    """The strength of an adapter's blocks, `I + strength (block − I)`.

    It is 1 initially. `keras_ether.strength` sets it, and it is 0 within
    `keras_ether.disabled`. Several `disabled` blocks may be nested, and may
    overlap in several threads or while one of them is traced. The variable is
    restored when the last block ends.

    Attributes:
        runtime_strength: The scalar variable, made by `build_strength`.
    """

    runtime_strength: Variable
    _before: list[tuple[object, Tensor]]

    def __init__(self, name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype)
        self._switching = threading.Lock()
        # The value that each open block restores, the original value first.
        # Hidden from Keras's trackers.
        self.__dict__["_before"] = []

    def build_strength(self, vector: Variable) -> None:
        """Makes the variable, for an adapter with this vector.

        Its path is not inside the adapter's path, since a rule of a layout map
        for vectors could not place a scalar.
        """
        owner, _, name = vector.path.rsplit("/", 2)[0].rpartition("/")
        with keras.name_scope(name or self.name, override_parent=owner):
            # A function, since a layer may be built while Keras infers shapes.
            self.runtime_strength = keras.Variable(
                keras.initializers.Ones(),
                shape=(),
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="ether_strength",
            )

    def set_strength(self, value: float) -> None:
        """Sets the strength; after `switched_off`, if it is active."""
        with self._switching:
            if self._before:
                block, _ = self._before[0]
                self._before[0] = (block, value)
            else:
                self.runtime_strength.assign(value)

    @property
    def is_switched_off(self) -> bool:
        """Whether the strength is zero. Compiled functions can't read this."""
        return not to_numpy(self.runtime_strength)

    @property
    def is_held_at_zero(self) -> bool:
        """Whether a `switched_off` block is active."""
        return bool(self._before)

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """A context in which every call computes with the base kernel."""
        block = object()
        with self._switching:
            self._before.append((block, snapshot(self.runtime_strength)))
            self.runtime_strength.assign(0.0)
        try:
            yield
        finally:
            with self._switching:
                index = [opened for opened, _ in self._before].index(block)
                _, before = self._before.pop(index)
                if index == len(self._before):
                    self.runtime_strength.assign(before)
                else:
                    # The next block began within this one, so it takes over
                    # the value to restore.
                    opened, _ = self._before[index]
                    self._before[index] = (opened, before)
