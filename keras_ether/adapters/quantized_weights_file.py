"""Weights files of adapted layers whose kernels are integers.

As in `keras_ether.adapters.weights_file`, no file holds a base kernel instead
of the fine-tuned kernel.

- int8 and int4: the file holds the fine-tuned kernel, quantized again, and a
  warning states the rounding error. An adapted layer over the same base keeps
  its codes and loads the vectors, bit for bit.
- GPTQ and AWQ: quantizing needs the calibration data, so saving is an error.
  Adapter files hold only the vectors.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

from keras_ether.adapters import quantized_kernel
from keras_ether.adapters import weights_file
from keras_ether.adapters.weights_file import AdaptedFile
from keras_ether.types import LayerMixin
from keras_ether.types import Variable

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter


class IntegerFile(AdaptedFile):
    """Mixin for an adapted layer with an int8 or int4 kernel."""

    def kernel_variables(self) -> list[Variable]:
        return quantized_kernel.code_variables(self)

    def entries_of_file(self) -> Callable[[Any], Any]:
        if self.ether.is_switched_off or weights_file.is_saving_base():
            return lambda value: value
        rounded = quantized_kernel.round_effective(self)
        self._warn_of_error("The file holds", rounded.error)
        return lambda value: rounded.values.get(
            getattr(value, "name", None), value
        )

    def take_out(self, adapter: "Adapter") -> None:
        effective = quantized_kernel.dequantize(self)
        base = quantized_kernel.requantize(self, adapter.unfold(effective))
        base.assign_to(self)
        self._warn_of_error(
            "The file was saved over another base kernel. The base is now",
            base.error,
        )

    def _warn_of_error(self, holds: str, error: float) -> None:
        warnings.warn(
            f"{holds} the kernel of '{self.path}' rounded to "
            f"{self.quantization_mode} again, at a relative error of "
            f"{error:.2%}.",
            stacklevel=3,
        )


class CalibratedFile(LayerMixin):
    """Mixin for an adapted GPTQ or AWQ layer: its weights files are refused."""

    def save_own_variables(self, store: Any) -> None:
        if not (self.ether.is_switched_off or weights_file.is_saving_base()):
            raise ValueError(
                f"Layer '{self.path}' has an ETHER adapter over a kernel that "
                f"is quantized by '{self.quantization_mode}'. A weights file "
                "holds the fine-tuned kernel, and quantizing it again would "
                "need the calibration data. Save the adapter with "
                "`keras_ether.save_adapter`, or in training with "
                "`keras_ether.callbacks.AdapterCheckpoint`."
            )
        super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        self.ether.loading = weights_file.NOT_READ
        super().load_own_variables(store)
        self.ether.loading = None
