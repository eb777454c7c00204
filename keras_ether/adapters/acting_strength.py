"""How far an adapter acts, as a variable that compiled functions read."""

import contextlib

import keras
from keras import ops

from keras_ether.adapters.switch import Switch
from keras_ether.methods import Method
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import tensor
from keras_ether.ops.values import to_numpy
from keras_ether.types import Factors
from keras_ether.types import LayerMixin
from keras_ether.types import Variable


class ActingStrength(LayerMixin):
    """The strength of an adapter's blocks, `I + strength (block − I)`.

    `keras_ether.strength` sets it, 1 at first, and it is 0 within
    `keras_ether.disabled`. A subclass has a `method`.

    Attributes:
        strength: The scalar variable, made by `build_strength`.
        switch: The `Switch` that holds it at zero.
        acts_wholly: Whether the blocks are those of the method, or the identity
            while switched off. A Python value: traced code depends on it.
    """

    method: Method
    strength: Variable

    def __init__(self, name: str, dtype: str) -> None:
        super().__init__(name=name, dtype=dtype)
        self.switch = Switch()
        self.acts_wholly = True

    def build_strength(self, vector: Variable) -> None:
        """Makes the variable.

        Its path is beside the adapter's: a rule of a layout map for vectors
        could not place a scalar.

        Args:
            vector: A vector of the adapter.
        """
        owner, _, name = vector.path.rsplit("/", 2)[0].rpartition("/")
        with keras.name_scope(name or self.name, override_parent=owner):
            # A function, since a layer may be built while Keras infers shapes.
            self.strength = keras.Variable(
                keras.initializers.Ones(),
                shape=(),
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="ether_strength",
            )

    @property
    def orthogonal(self) -> bool:
        """Whether every block is orthogonal at the current strength."""
        return self.acts_wholly and self.method.orthogonal

    def set_strength(self, value: float) -> bool:
        """Sets the blocks' strength; within `disabled` it acts after the block.

        Returns:
            Whether functions traced before may rely on an orthogonality lost
            now.
        """
        was_orthogonal = self.orthogonal
        self.acts_wholly = self.acts_wholly and value in (0.0, 1.0)
        self.switch.assign(self.strength, value)
        return was_orthogonal and not self.orthogonal

    @property
    def is_switched_off(self) -> bool:
        """Whether the adapter is off. Compiled functions can't read this."""
        return not to_numpy(self.strength)

    def switched_off(self) -> contextlib.AbstractContextManager:
        """A context in which every call computes with the base kernel."""
        return self.switch.held_at_zero(self.strength)

    def checked(self, factors: Factors | None) -> Factors | None:
        """The factors, or NaN if orthogonal blocks are not orthogonal when run.

        A user's function that was traced before another strength was set would
        give wrong gradients without a warning.
        """
        if factors is None or BACKEND == "torch" or not self.orthogonal:
            return factors
        left, right = factors
        strength = tensor(self.strength)
        holds = ops.logical_or(strength == 0.0, strength == 1.0)
        return ops.where(holds, left, float("nan")), right
