"""Unit vectors, in few operations on eager PyTorch.

Every adapted layer computes them at each call, so that there the operations
that they start count, not their sizes. Norms and their gradients are PyTorch's
own, of which a vector of weights of `torch.nn.utils.weight_norm` has the same.
"""

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import float32
from keras_ether.ops.backend import reciprocal_norm
from keras_ether.ops.custom_gradient import in_few_operations
from keras_ether.types import Arrays
from keras_ether.types import Gradients
from keras_ether.types import Kept
from keras_ether.types import Tensor

if BACKEND == "torch":
    import torch

# Of shorter vectors the gradient's kernel on CUDA could overflow.
SHORTEST = 1e-12


def unit(u: Tensor) -> Tensor:
    """Returns `u / ‖u‖` along the last axis; zero vectors stay zero.

    The gradient is finite everywhere, at zero vectors too.

    Args:
        u: Tensor of shape `(..., width)`.

    Returns:
        Float32 tensor of the same shape.

    Example:

    >>> ops.convert_to_numpy(unit(np.array([[3.0, 4.0], [0.0, 0.0]]))).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return _unit(float32(u))


def _plain(u: Tensor) -> Tensor:
    return u * reciprocal_norm(u)


def _forward(u: Tensor) -> tuple[Tensor, Kept]:
    length = lengths(u)
    return u / length, ((length,),)


def _backward(arguments: Arrays, kept: Kept, upstream: Tensor) -> Gradients:
    (u,), ((length,),) = arguments, kept
    return (unit_gradient(u, length, upstream),)


_unit = in_few_operations(_plain, _forward, _backward)


def lengths(u: Tensor) -> Tensor:
    """`‖u‖` along the last axis, which is kept; infinite for a zero vector.

    So that a quotient is zero, and its gradient too. For PyTorch only.
    """
    length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    return torch.nn.functional.threshold(length, SHORTEST, float("inf"))


def unit_gradient(u: Tensor, length: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of `u` from that of `û = u / length`. For PyTorch only."""
    rows = (-1, u.shape[-1])
    length = length.reshape(-1, 1)
    gradient, _ = torch.ops.aten._weight_norm_interface_backward(
        upstream.reshape(rows).contiguous(),
        u.reshape(rows).contiguous(),
        torch.ones_like(length),
        length,
        0,
    )
    return gradient.reshape(u.shape)
