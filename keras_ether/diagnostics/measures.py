"""Measures of kernels, as functions of arrays.

The distance of a transformation from the identity is
`keras_ether.ops.reflections.distance`.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_ether.types import Tensor

# Neurons are compared in tiles of this many by this many.
TILE = 2048
# Squared distances below this lose digits in `2 − 2 cos` in float32, and are
# computed from differences in float64.
CLOSE = 0.01
# The most entries that such differences hold at a time.
MOST_NUMBERS = 2**22


def kernel_distance(before: Tensor, after: Tensor) -> float:
    """Relative distance of two kernels, `‖after − before‖ / ‖before‖`.

    The norms are Frobenius norms, computed in float32.

    Args:
        before: Tensor of any shape.
        after: Tensor of the same shape.

    Returns:
        Float; 0 for equal kernels, zero ones included.

    Raises:
        ValueError: if the shapes differ.

    Example:

    >>> kernel_distance(np.array([[3.0, 4.0]]), np.array([[3.0, 9.0]]))
    1.0
    """
    if tuple(before.shape) != tuple(after.shape):
        raise ValueError(
            "The kernels must have one shape. Received: "
            f"before of shape {tuple(before.shape)}, "
            f"after of shape {tuple(after.shape)}"
        )
    before = ops.cast(before, "float32")
    moved = _norm(ops.cast(after, "float32") - before)
    return moved / _norm(before) if moved else 0.0


def hyperspherical_energy(kernel: Tensor) -> float:
    """Hyperspherical energy of a kernel's neurons.

        HE(W) = Σ_{i<j} 1 / ‖ŵᵢ − ŵⱼ‖        ŵ = w / ‖w‖

    The sum is over all pairs of neurons, the kernel's columns. Each pair counts
    once, so a sum over `i ≠ j` is twice this (Bini et al., ICML 2024, section
    5.3). The sum is computed in tiles: a kernel of 4,096 x 11,008 needs memory
    for a few copies of itself.

    Args:
        kernel: Tensor of shape `(..., inputs, outputs)`. Leading axes hold
            separate kernels, whose energies are added.

    Returns:
        Float; infinite if two neurons have the same direction. Columns of zeros
        have none and are left out.

    Raises:
        ValueError: if the kernel has fewer than two axes.

    Example:

    >>> round(hyperspherical_energy(np.eye(2)), 6)  # one pair, √2 apart
    0.707107
    """
    if len(kernel.shape) < 2:
        raise ValueError(
            "`kernel` must have the shape `(..., inputs, outputs)`. Received: "
            f"kernel of shape {tuple(kernel.shape)}"
        )
    kernel = ops.convert_to_numpy(ops.cast(kernel, "float32"))
    matrices = np.reshape(kernel, (-1, *kernel.shape[-2:]))
    return float(sum(_energy(matrix.T) for matrix in matrices))


def _energy(neurons: Any) -> float:
    """The energy of the rows of a matrix."""
    norms = np.sqrt(np.einsum("fd,fd->f", neurons, neurons, dtype="float64"))
    # Not `norms > 0`, which would drop NaN.
    neurons, norms = neurons[norms != 0], norms[norms != 0, None]
    directions = np.ascontiguousarray(neurons / norms, dtype="float32")
    starts = range(0, len(neurons), TILE)
    total = 0.0
    for start in starts:
        rows = slice(start, start + TILE)
        for other in starts[start // TILE :]:
            columns = slice(other, other + TILE)
            # ‖a − b‖² = 2 − 2 aᵀ b for unit vectors.
            squared = 2.0 - 2.0 * directions[rows] @ directions[columns].T
            if other == start:
                # Each pair once, and no neuron with itself.
                squared[np.tril_indices(len(squared))] = np.inf
            close = np.nonzero(squared < CLOSE)
            if len(close[0]):
                squared[close] = _squared_distances(
                    (neurons[rows], norms[rows], close[0]),
                    (neurons[columns], norms[columns], close[1]),
                )
            with np.errstate(divide="ignore"):
                total += np.sum(1.0 / np.sqrt(squared), dtype="float64")
    return total


def _squared_distances(first: tuple, second: tuple) -> np.ndarray:
    """Squared distances of the directions of pairs of neurons, in float64."""
    width = first[0].shape[1]
    size = max(1, MOST_NUMBERS // width)
    found = []
    for start in range(0, len(first[2]), size):
        pairs = slice(start, start + size)
        one, other = (
            neurons[index[pairs]].astype("float64") / norms[index[pairs]]
            for neurons, norms, index in (first, second)
        )
        found.append(np.sum((one - other) ** 2, axis=1))
    return np.concatenate(found)


def _norm(x: Tensor) -> float:
    return float(ops.convert_to_numpy(ops.sqrt(ops.sum(ops.square(x)))))
