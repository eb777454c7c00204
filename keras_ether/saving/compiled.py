"""Compiled models in copies: the arguments of `compile`, the optimizer's state.

Keras restores some of them from its format, but not for all models.
"""

import inspect
from typing import Any

import keras
import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Variable


class Compiled:
    """A model's arguments of `compile`, and the state of its optimizer.

    Args:
        model: A compiled model.
        places: Dictionary from the id of a variable to its place among all of
            the copied model.
    """

    def __init__(self, model: Layer, places: dict[int, int]) -> None:
        self.config = dict(model.get_compile_config())
        self.extras = _extras(model, self.config)
        self.values: list[np.ndarray] = []
        self.optimized: list[Any] | None = None
        optimizer = model.optimizer
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            return
        # It may have replaced the optimizer passed to `compile`.
        serialize = keras.saving.serialize_keras_object
        if "optimizer" in self.config:
            self.config["optimizer"] = serialize(optimizer)
        self.values = [to_numpy(v) for v in optimizer.variables]
        if optimizer.built:
            optimized = internals.trained_variables(optimizer)
            self.optimized = [places.get(id(v)) for v in optimized]
        if None in (self.optimized or ()):
            raise ValueError(
                f"Model '{model.name}' can't be copied: its optimizer was "
                "built for variables that the model no longer has. Call "
                "`compile(...)` again first."
            )

    def compile(self, model: Layer, variables: list[Variable]) -> None:
        if not self.config:
            return
        deserialize = keras.saving.deserialize_keras_object
        own_way = type(model).compile_from_config
        if own_way is keras.Model.compile_from_config and self._fits(model):
            arguments = deserialize(self.config, safe_mode=False)
            extras = deserialize(self.extras, safe_mode=False)
            model.compile(**arguments, **extras)
        else:
            # Warns if Keras can't call the model's own `compile`.
            model.compile_from_config(self.config)
        if not model.compiled:
            return
        optimizer = model.optimizer
        if self.optimized is not None:
            optimizer.build([variables[index] for index in self.optimized])
        if not self.values:
            return
        shapes = [tuple(v.shape) for v in optimizer.variables]
        expected = [value.shape for value in self.values]
        if shapes != expected:
            raise ValueError(
                f"The copy of model '{model.name}' has another optimizer: "
                f"variables of shapes {shapes}, not {expected}."
            )
        pairs = zip(optimizer.variables, self.values, strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def _fits(self, model: Layer) -> bool:
        signature = inspect.signature(model.compile)
        names = {*self.config, *self.extras}
        try:
            signature.bind(**dict.fromkeys(names))
        except TypeError:
            return False
        return True


def _extras(model: Model, config: Any) -> dict[str, Any]:
    """Kept arguments of the model's own `compile`, such as a sampler."""
    known = {*config, "self"}
    return {
        name: keras.saving.serialize_keras_object(getattr(model, name))
        for name in inspect.signature(type(model).compile).parameters
        if name not in known and name in vars(model)
    }
