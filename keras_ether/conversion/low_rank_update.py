"""The update of a kernel as a product of two thin matrices, by formula.

With `H = I + Lᵀ R` and `G = I + Mᵀ T`, whose factors have `k n` rows,

    H W G − W = A B        A = [Lᵀ, H W Mᵀ]        B = [R W; T]

(Bini et al., ICML 2024, sections 3.2 and 3.3: `k` is 1 for ETHER and 2 for
ETHER+). All products are taken in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_ether.adapters import quantized_kernel
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.call import Call
from keras_ether.ops import memory
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.ops.values import to_numpy
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import adapted_layers
from keras_ether.types import Layer

Factors = tuple[np.ndarray, np.ndarray]


def lora_factors(
    model: Layer, skip: list[str] | None = None
) -> dict[str, Factors]:
    """The updates of a model's adapters as factors `A` and `B`, as in LoRA.

    A kernel `W`, as a `(d, f)` matrix, acts as `W + A B`. The rank is the
    smallest that holds for all values of the vectors: the number of blocks `n`
    for `"ether"`, `2n` for `"ether+"` on one side and `4n` on both sides.

    If `keras_ether.strength` is not 1, the factors are those of the update at
    that strength.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        skip: List of names or paths of layers that are left out, or `None`.
            Defaults to `None`.

    Returns:
        Dictionary from layer path to `(A, B)`, float32 arrays of shapes `(d,
        rank)` and `(rank, f)`. The axes that a kernel of `EinsumDense`
        contracts are flattened into `d` and the others into `f`, both in the
        kernel's own order. For kernels with experts, both arrays have the
        experts as their first axis. For an embedding `d` is the size of the
        vocabulary.

    Raises:
        ValueError: if there is no adapter, if an entry of `skip` names no
            adapted layer, or if an adapter has no such factors: a convolution,
            the methods `"oft"` and `"naive"`, kernels quantized by GPTQ or AWQ.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    >>> model = keras_ether.apply(model, rank_blocks=4, method="ether")
    >>> a, b = keras_ether.lora_factors(model)["dense"]
    >>> a.shape, b.shape
    ((16, 4), (4, 8))
    """
    layers = without(adapted_layers(model), skip)
    check(layers)
    return {
        path: factors_of(layer)
        for path, layer in memory.one_by_one(layers.items())
    }


def checked_skip(skip: Any) -> list[str]:
    """The names or paths that `skip` lists.

    Raises:
        ValueError: if it is neither a list of strings nor `None`.
    """
    entries = [skip] if isinstance(skip, str) else skip
    if entries is None:
        return []
    if not isinstance(entries, (list, tuple)) or not all(
        isinstance(entry, str) for entry in entries
    ):
        raise ValueError(
            "`skip` must be a list of names or paths of adapted layers, or "
            f"None. Received: skip={skip!r}"
        )
    return list(entries)


def without(layers: dict, skip: list[str] | None) -> dict:
    """Adapted layers by path, without those that `skip` names.

    Raises:
        ValueError: if an entry names no adapted layer.
    """
    skipped = set()
    for entry in checked_skip(skip):
        named = targets_lib.named(layers, entry)
        if not named:
            raise ValueError(
                "`skip` must name adapted layers, by name or path. Received: "
                f"{entry!r}. Adapted layers: {targets_lib.shorten(layers)}."
            )
        skipped |= named
    return {p: layer for p, layer in layers.items() if p not in skipped}


def check(
    layers: dict, refusal: Callable[[Layer], str | None] | None = None
) -> None:
    """Checks that adapters have factors, and that `refusal` has no reason.

    Raises:
        ValueError: if a layer is refused. It names all of them.
    """
    reasons: dict[str, list[str]] = {}
    for path, layer in layers.items():
        reason = refusal_reason(layer) or (refusal and refusal(layer))
        if reason:
            reasons.setdefault(reason, []).append(path)
    if reasons:
        listed = "; ".join(
            f"{targets_lib.shorten(paths)}: {reason}"
            for reason, paths in reasons.items()
        )
        raise ValueError(
            f"Some adapters can't be written as a product of two thin "
            f"matrices, {listed}. Pass their names as `skip` to leave them out."
        )


def refusal_reason(layer: Layer) -> str | None:
    """The reason why a layer's update has no thin factors, or `None`."""
    if not isinstance(layer.ether.view, MatrixView):
        return "the kernel of a convolution is not one matrix"
    if layer.quantization_mode in quantized_kernel.CALIBRATED:
        mode = layer.quantization_mode.upper()
        return f"kernels quantized by {mode} can't be read"
    for side in layer.ether.widths:
        if layer.ether.trained_factors(side)[1] is None:
            return (
                f"method '{layer.ether.config.method}' has blocks of full rank"
            )
    return None


def factors_of(layer: Layer) -> Factors:
    """`(A, B)` of one adapted layer, see `lora_factors`."""
    adapter = layer.ether
    experts = adapter.view.sizes(adapter.kernel_shape)[0]
    kernel = _matrices(layer)
    columns, rows = [], []
    inputs = _side(adapter, "input", experts)
    outputs = _side(adapter, "output", experts)
    if inputs is not None:
        left, right = inputs
        columns.append(np.swapaxes(left, 1, 2))
        rows.append(right @ kernel)
    if outputs is not None:
        left, right = outputs
        left = np.swapaxes(left, 1, 2)
        product = kernel @ left
        for a, b in zip(columns, rows, strict=True):
            product = product + a @ (b @ left)
        columns.append(product)
        rows.append(right)
    a = np.concatenate(columns, axis=2).astype("float32")
    b = np.concatenate(rows, axis=1).astype("float32")
    return (a[0], b[0]) if experts == 1 else (a, b)


def _matrices(layer: Layer) -> np.ndarray:
    """The base kernel, `(experts, d, f)` in float64."""
    kernel = layer.base_kernel
    if layer.quantization_mode in quantized_kernel.INTEGERS:
        kernel = quantized_kernel.dequantize(layer)
    kernel = ops.cast(ops.convert_to_tensor(kernel), "float32")
    return to_numpy(layer.ether.view.neurons(kernel)).astype("float64")


def _side(adapter: Adapter, side: str, experts: int) -> list[np.ndarray] | None:
    """The factors of one side, `(experts, k n, size)` in float64."""
    factors = Call.outside().factors(adapter)[side]
    if factors is None:
        return None
    return [_block_diagonal(to_numpy(f), experts) for f in factors]


def _block_diagonal(factor: np.ndarray, experts: int) -> np.ndarray:
    blocks, k, width = factor.shape
    n = blocks // experts
    matrix = np.zeros((experts, n, k, n, width), "float64")
    places = np.arange(n)
    parts = factor.reshape(experts, n, k, width)
    matrix[:, places, :, places] = np.swapaxes(parts, 0, 1)
    return matrix.reshape(experts, n * k, n * width)
