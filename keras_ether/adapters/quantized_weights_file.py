"""Weights files of adapted layers whose kernels are integers.

They keep the promise of `keras_ether.adapters.weights_file`, that no file holds
a base kernel in place of the fine-tuned one.

- int8 and int4: the file holds the fine-tuned kernel, rounded to such codes
  again, and a warning gives the rounding error. An adapted layer over the same
  base keeps its codes and loads the vectors, bit for bit.
- GPTQ and AWQ: codes can't be fitted without the calibration data, so the file
  holds the base's codes beside the vectors, in a form that a plain layer
  refuses. An adapted layer loads both.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_ether.adapters import freezing
from keras_ether.adapters import quantized_kernel
from keras_ether.adapters import weights_file
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.ops.values import settled
from keras_ether.ops.values import to_numpy
from keras_ether.types import Layer
from keras_ether.types import LayerMixin
from keras_ether.types import Variable

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


# A plain layer refuses the file because of this further entry.
ADAPTED = "adapted_by_keras_ether"


class IntegerFile(LayerMixin):
    """Mixin for an adapted int8 or int4 layer that saves in its plain format.

    See `keras_ether.adapters.weights_file.PlainFile`.
    """

    def save_own_variables(self, store: Any) -> None:
        entries: dict[str, Any] = {}
        super().save_own_variables(entries)
        values = {}
        if not (self.ether.is_switched_off or weights_file.is_of_base()):
            rounded = quantized_kernel.round_effective(self)
            values = rounded.values
            _warn_of_error(self, "The file holds", rounded.error)
        for key, value in entries.items():
            value = values.get(getattr(value, "name", None), value)
            store[key] = settled(value)
        variables = quantized_kernel.code_variables(self)
        self.ether.base_fingerprint = _fingerprint(_values(variables))

    def load_own_variables(self, store: Any) -> None:
        loading = _LoadingIntegers(self)
        super().load_own_variables(store)
        self.ether.loading = loading


class CalibratedFile(LayerMixin):
    """Mixin for an adapted GPTQ or AWQ layer; plain layers refuse its file."""

    def save_own_variables(self, store: Any) -> None:
        if self.ether.is_switched_off or weights_file.is_of_base():
            super().save_own_variables(store)
            return
        for variable in freezing.own_variables(self):
            store[variable.name] = to_numpy(variable)
        store[ADAPTED] = np.ones((), "uint8")

    def load_own_variables(self, store: Any) -> None:
        loading = _Loading(freezing.own_variables(self))
        if ADAPTED in store:
            _read(self, loading.variables, store)
        else:
            super().load_own_variables(store)
        self.ether.loading = loading


class _Loading:
    """Variables that are about to be read, and their previous values."""

    def __init__(self, variables: list[Variable]) -> None:
        self.variables = variables
        self.values = _values(variables)

    def undo(self) -> None:
        for variable in self.variables:
            variable.assign(self.values[variable.name])

    def fingerprint(self, digest_of: Callable) -> np.ndarray:
        """The digest of the previous codes."""
        return _fingerprint(self.values, digest_of)

    def settle(self, adapter: "Adapter", is_over_same_base: bool) -> None:
        """Nothing is left to decide: the file holds the base itself."""


class _LoadingIntegers(_Loading):
    def __init__(self, layer: Layer) -> None:
        super().__init__(quantized_kernel.code_variables(layer))
        self.layer = layer

    def settle(self, adapter: "Adapter", is_over_same_base: bool) -> None:
        """Chooses the base, once the vectors are read."""
        if is_over_same_base:
            self.undo()
        elif adapter.method.orthogonal:
            effective = quantized_kernel.dequantize(self.layer)
            rounded = quantized_kernel.requantize(
                self.layer, adapter.unfold(effective)
            )
            rounded.assign_to(self.layer)
            _warn_of_error(
                self.layer,
                "The file was saved over another base kernel. The base is now",
                rounded.error,
            )
        else:
            adapter.restart()
            warnings.warn(
                f"The file's weights for '{self.layer.path}' were saved over "
                f"another base kernel. '{adapter.config.method}' cannot be "
                "taken out of a kernel, so the fine-tuned kernel becomes the "
                "base and its adapter starts at the identity again.",
                stacklevel=2,
            )


def _read(layer: Layer, variables: list[Variable], store: Any) -> None:
    expected = {v.name: tuple(v.shape) for v in variables}
    received = {
        name: tuple(np.shape(store[name]))
        for name in store.keys()  # noqa: SIM118 - not a dictionary
        if name != ADAPTED
    }
    if received != expected:
        raise ValueError(
            f"The file's codes for layer '{layer.path}' are not those of this "
            f"model. Expected: {expected}. Received: {received}."
        )
    for variable in variables:
        variable.assign(store[variable.name])


def _values(variables: list[Variable]) -> dict[str, np.ndarray]:
    return {v.name: to_numpy(v) for v in variables}


def _fingerprint(
    values: dict[str, np.ndarray], digest_of: Callable = fingerprint
) -> np.ndarray:
    return np.concatenate([digest_of(values[name]) for name in sorted(values)])


def _warn_of_error(layer: Layer, holds: Any, error: float) -> None:
    warnings.warn(
        f"{holds} the kernel of '{layer.path}' rounded to "
        f"{layer.quantization_mode} again, at a relative error of {error:.2%}.",
        stacklevel=3,
    )
