"""Unit vectors."""

from keras_ether.ops.backend import float32
from keras_ether.ops.backend import reciprocal_norm
from keras_ether.types import Tensor


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
    u = float32(u)
    return u * reciprocal_norm(u)
