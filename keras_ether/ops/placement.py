"""The placement of adapters' small arrays on several JAX devices.

By default, XLA shards these arrays as it shards the kernels, and gathers each
of them again, part by part. That needs more messages than a whole frozen model.
If the arrays are declared as replicated, it sends one all-reduce for each.
"""

import keras

from keras_ether.ops.backend import BACKEND
from keras_ether.types import Tensor
from keras_ether.types import Variable

if BACKEND == "jax":
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec


def as_vectors(x: Tensor, vector: Variable) -> Tensor:
    """Factors made of `vector`, replicated on every device if it is.

    Without a distribution, or if it shards `vector`, `x` is returned unchanged.
    """
    axes = _axes(vector)
    return x if axes is None or any(axes) else _whole(x)


def as_activations(x: Tensor, kernel: Variable) -> Tensor:
    """Rows times a kernel, replicated on every device if activations are.

    Activations are replicated if a kernel is sharded only along the axis of the
    examples. The kernel's parts are then gathered for the product, and the
    activations' parts are not. Without a distribution, or if activations may be
    sharded as the kernel is, `x` is returned unchanged.
    """
    axes = _axes(kernel)
    if axes is None:
        return x
    examples = keras.distribution.distribution().batch_dim_name
    return _whole(x) if {*axes} <= {None, examples} else x


def parts(variable: Variable) -> tuple[int, ...]:
    """The number of parts that a distribution cuts each axis of a variable in.

    It is 1 for an axis that is whole, and for all of them without a
    distribution.
    """
    axes = _axes(variable) or (None,) * len(variable.shape)
    if not any(axes):
        return (1,) * len(axes)
    mesh = keras.distribution.distribution().device_mesh
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    return tuple(1 if axis is None else sizes[axis] for axis in axes)


def _axes(variable: Variable) -> tuple[str | None, ...] | None:
    """The mesh axes along which a variable is sharded, by its own axes."""
    distribution = keras.distribution.distribution()
    if BACKEND != "jax" or distribution is None:
        return None
    layout = distribution.get_variable_layout(variable)
    return None if layout is None else tuple(layout.axes)


def _whole(x: Tensor) -> Tensor:
    whole = PartitionSpec()
    if not jax.sharding.get_abstract_mesh().empty:
        return jax.lax.with_sharding_constraint(x, whole)
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, whole))
