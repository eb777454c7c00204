"""Gradients of stacks, in which every row belongs to another adapter."""

import math
from collections.abc import Iterable
from collections.abc import Sequence

from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import reshape
from keras_ether.types import Tensor


def share_of_own(ids: Tensor) -> Tensor:
    """Factors between a mean over the batch and one over an id's examples.

    For each id, the gradient of a mean over the batch, times this factor, is
    the gradient of the mean over the id's own examples. The factor of the id 0
    is zero.

    Args:
        ids: Int32 tensor of shape `(batch,)`.

    Returns:
        Float32 tensor of shape `(batch,)`.
    """
    same = ops.cast(ops.equal(ids[:, None], ids[None, :]), "float32")
    own = ops.sum(same, axis=1)
    return ops.where(ids == 0, 0.0, ops.sum(ops.ones_like(own)) / own)


def scale_gradient(x: Tensor, scale: Tensor) -> Tensor:
    """`x`, whose gradient is multiplied by `scale`, one factor per example."""
    scale = reshape(scale, (-1,) + (1,) * (len(x.shape) - 1))
    constant = ops.stop_gradient(x)
    return constant + ops.cast(scale, x.dtype) * (x - constant)


def dense_gradient(gradient: Tensor) -> Tensor:
    """A gradient as one tensor, with the slices of a gather added up."""
    if BACKEND != "tensorflow":
        return gradient
    # `ops.convert_to_tensor` would leave slices as they are.
    return ops.reshape(gradient, tuple(gradient.shape))


def clip_rows(gradients: Sequence[Tensor], norm: float) -> list[Tensor]:
    """Gradients of which each row has at most a norm over all of them.

    Args:
        gradients: Tensors of shapes `(rows, ...)`.
        norm: Float, the largest norm of a row.

    Returns:
        Tensors of the same shapes.
    """
    squared = sum(
        ops.sum(ops.square(reshape(g, (g.shape[0], -1))), axis=1)
        for g in gradients
    )
    scale = norm / ops.maximum(ops.sqrt(squared), norm)
    return [
        g * reshape(scale, (-1,) + (1,) * (len(g.shape) - 1)) for g in gradients
    ]


def rows_with_gradient(gradients: Iterable[Tensor]) -> Tensor:
    """Whether any of the gradients reaches a row, for each row.

    Args:
        gradients: Tensors of shapes `(rows, ...)`.

    Returns:
        Boolean tensor of shape `(rows,)`.
    """
    found = None
    for gradient in gradients:
        shape = (gradient.shape[0], math.prod(gradient.shape[1:]))
        reached = ops.any(reshape(gradient, shape) != 0, axis=1)
        found = reached if found is None else ops.logical_or(found, reached)
    return found
