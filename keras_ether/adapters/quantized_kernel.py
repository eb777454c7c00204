"""Integer kernels: dequantizing and quantizing again.

Keras stores an int8 or int4 kernel as integer codes with scales per output, or
per group of inputs with zero points. Keras's own `quantize`, on a plain layer
that holds the new kernel, rounds it with the scheme and the quantizers of the
original layer.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.types import Layer
from keras_ether.types import Tensor

# Codes and scales, to which new values can be rounded.
INTEGERS = ("int8", "int4")
# Codes that Keras has fitted to calibration data.
CALIBRATED = ("gptq", "awq")
CODES = INTEGERS + CALIBRATED


@dataclass(frozen=True)
class Rounded:
    """A kernel as codes.

    Attributes:
        values: Dictionary from the name of a variable of the layer, such as
            `"kernel_scale"`, to its value.
        error: Float, the distance to the kernel before rounding, relative to
            the kernel's norm.
    """

    values: dict
    error: float

    def assignments(self, layer: Layer) -> list:
        """Pairs of a variable of the layer and its value."""
        return [(v, self.values[v.name]) for v in code_variables(layer)]

    def assign_to(self, layer: Layer) -> None:
        """Sets the layer's variables."""
        for variable, value in self.assignments(layer):
            variable.assign(value)


def code_variables(layer: Layer) -> list:
    """The variables that hold the kernel of an int8 or int4 layer."""
    name = _name(layer)
    names = (name, f"{name}_scale", f"{name}_zero")
    return [v for v in layer.variables if v.name in names]


def dequantize(layer: Layer) -> Tensor:
    """The kernel of an int8 or int4 layer, in float32."""
    name, is_table = _name(layer), isinstance(layer, keras.layers.Embedding)
    codes = ops.cast(getattr(layer, name), "float32")
    scale = ops.cast(getattr(layer, f"{name}_scale"), "float32")
    zero = getattr(layer, f"{name}_zero", None)
    if layer.quantization_mode == "int8":
        if is_table:
            scale = scale[:, None]
        elif isinstance(layer, keras.layers.EinsumDense):
            scale = internals.einsum_kernel_scale(layer, scale)
        return codes / scale
    # `codes / scale` where all rows of this matrix share scales, and
    # `(codes − zero) · scale` where the rows of a group share them.
    if is_table:
        matrix = ops.transpose(codes)
    else:
        matrix = ops.reshape(codes, (-1, scale.shape[-1]))
    if zero is None:
        matrix = matrix / scale
    else:
        zero = ops.cast(zero, "float32")
        if is_table:
            scale, zero = ops.transpose(scale), ops.transpose(zero)
        groups = ops.cast(layer.g_idx, "int32")
        matrix = matrix - ops.take(zero, groups, axis=0)
        matrix = matrix * ops.take(scale, groups, axis=0)
    if is_table:
        return ops.transpose(matrix)
    return ops.reshape(matrix, codes.shape)


def requantize(layer: Layer, kernel: Tensor) -> Rounded:
    """Rounds a float32 kernel to codes, as Keras would for an integer layer.

    The layer is not changed.
    """
    plain = _plain_layer(layer)
    plain.weights[0].assign(kernel)
    plain.quantize(
        layer.quantization_mode, type_check=False, config=_config(layer)
    )
    values = {
        variable.name: to_numpy(variable) for variable in code_variables(plain)
    }
    norm, distance = (
        float(np.linalg.norm(ops.convert_to_numpy(tensor)))
        for tensor in (kernel, dequantize(plain) - kernel)
    )
    return Rounded(values, distance / norm if norm else distance)


def round_effective(layer: Layer) -> Rounded:
    """The codes of an adapted int8 or int4 layer's transformed kernel."""
    return requantize(layer, layer.ether.fold(dequantize(layer)))


def check_mergeable(layers: dict, requantize: bool) -> None:
    """Raises a `ValueError` for the first kernel that can't be merged.

    With `requantize`, integer kernels may be rounded again.
    """
    for path, layer in layers.items():
        mode = layer.quantization_mode
        if mode in CALIBRATED:
            raise ValueError(
                f"Layer '{path}' can't be merged: its kernel is quantized "
                f"('{mode}') with calibration data, and quantizing the merged "
                "kernel would need these data. Keep the adapter active, call "
                "`keras_ether.remove`, or merge before quantizing."
            )
        if mode in INTEGERS and not requantize:
            raise ValueError(
                f"Layer '{path}' can't be merged without rounding: its kernel "
                f"is quantized ('{mode}'). `keras_ether.merge(model, "
                "requantize=True)` rounds the merged kernel and warns of the "
                "rounding error. Or keep the adapter active, or call "
                "`keras_ether.remove`."
            )


def describe_merge(errors: dict[str, float]) -> str:
    """A sentence with the relative errors by layer path, the largest first."""
    worst = sorted(errors, key=errors.__getitem__, reverse=True)
    named = ", ".join(f"{errors[path]:.2%} in '{path}'" for path in worst[:5])
    more = f" and less in {len(worst) - 5} more" if worst[5:] else ""
    mean = sum(errors.values()) / len(errors)
    return (
        "Merged kernels were rounded to integers again, at a relative error of "
        f"{mean:.2%} on average: {named}{more}."
    )


def _name(layer: Layer) -> str:
    is_table = isinstance(layer, keras.layers.Embedding)
    return "embeddings" if is_table else "kernel"


def _plain_layer(layer: Layer) -> Layer:
    """A float layer of the plain Keras class, with the same kernel."""
    # An explicit name: an automatic one would shift the user's names.
    arguments = {"dtype": layer.variable_dtype, "name": "requantized"}
    if isinstance(layer, keras.layers.Embedding):
        plain = keras.layers.Embedding(
            layer.input_dim,
            layer.output_dim,
            embeddings_initializer="zeros",
            **arguments,
        )
        plain.build()
        return plain
    arguments["kernel_initializer"] = "zeros"
    if isinstance(layer, keras.layers.EinsumDense):
        plain = keras.layers.EinsumDense(
            layer.equation, layer.partial_output_shape, **arguments
        )
        plain.build(layer.get_build_config()["input_shape"])
        return plain
    inputs, units = layer.kernel.shape
    plain = keras.layers.Dense(units, use_bias=False, **arguments)
    plain.build((None, inputs))
    return plain


def _config(layer: Layer) -> dict[str, Any]:
    config = layer.quantization_config
    if config is None and layer.quantization_mode == "int4":
        return keras.quantizers.Int4QuantizationConfig(
            block_size=internals.int4_block_size(layer)
        )
    return config


def quantizing_error(layer_path: str, mode: str | None) -> ValueError:
    """The error of quantizing a layer that has an adapter."""
    return ValueError(
        f"Layer '{layer_path}' has an ETHER adapter and can't be quantized. "
        "Quantize the model first and apply ETHER to the quantized model, or "
        "call `keras_ether.merge(model)` before quantizing. Received: "
        f"mode={mode!r}"
    )
