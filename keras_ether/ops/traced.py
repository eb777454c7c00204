"""Values and operations while a compiler or exporter traces."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import is_transformed
from keras_ether.ops.values import to_numpy
from keras_ether.types import Tensor

if BACKEND == "jax":
    import jax
elif BACKEND == "tensorflow":
    import tensorflow as tf
else:
    import torch


def is_traced() -> bool:
    """Whether a compiler or an exporter traces now."""
    if BACKEND == "jax":
        # Even a constant is traced then.
        return isinstance(ops.zeros(()), jax.core.Tracer)
    if BACKEND == "tensorflow":
        return not tf.executing_eagerly()
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed()
    )


def concrete(x: Any) -> np.ndarray | None:
    """The values of an array or tensor, or `None` while it is traced."""
    if is_traced() or isinstance(x, keras.KerasTensor):
        return None
    if BACKEND == "jax" and isinstance(x, jax.core.Tracer):
        return None
    if BACKEND == "torch" and torch.is_tensor(x):
        return None if x.is_meta else to_numpy(x)
    return np.asarray(x)


def compiled(
    function: Callable, by_jax: bool = True, static: Sequence[int] = ()
) -> Callable:
    """The function, compiled with `jax.jit` on JAX and unchanged elsewhere.

    Otherwise JAX would compile a program for each operation. `static` are the
    positions of hashable arguments that are no tensors.
    """
    if BACKEND == "jax" and by_jax:
        return jax.jit(function, static_argnums=static)
    return function


def eagerly() -> contextlib.AbstractContextManager:
    """A context that runs operations on arrays at once, even while tracing."""
    if BACKEND == "jax":
        return jax.ensure_compile_time_eval()
    if BACKEND == "tensorflow":
        return tf.init_scope()
    return contextlib.nullcontext()


def clear_traces(error: Exception) -> None:
    """Lets JAX trace functions within models again, if it has to.

    A `jax.jit` that was traced within another holds values of that trace, and
    can't run later. `error` is that of its next run.
    """
    if BACKEND == "jax" and isinstance(error, jax.errors.UnexpectedTracerError):
        jax.clear_caches()


def no_gradient() -> contextlib.AbstractContextManager:
    """A context in which PyTorch stores nothing for a gradient."""
    return torch.no_grad() if BACKEND == "torch" else contextlib.nullcontext()


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """A context in which PyTorch draws the same random numbers each time.

    On other backends, random numbers depend on variables. Afterwards the
    generator's state is restored.
    """
    if BACKEND != "torch":
        yield
        return
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(0)
        yield


def after(values: list[Tensor]) -> contextlib.AbstractContextManager:
    """A context whose operations a graph of TensorFlow runs after `values`.

    TensorFlow may run two reads of variables in any order.
    """
    if BACKEND == "tensorflow":
        return tf.control_dependencies(values)
    return contextlib.nullcontext()


def same_leading_axis(x: Tensor, size: Any) -> Tensor:
    """`x`, asserted to have this leading axis where the graph runs.

    TensorFlow knows some sizes only then. Without the assertion, a product or a
    sum with another size might still be computed.
    """
    shape = (size, *ops.shape(x)[1:])
    if BACKEND != "tensorflow":
        return ops.reshape(x, shape)
    # TensorFlow removes a reshape of a vector. (XLA removes assertions, but
    # knows all sizes.)
    check = tf.debugging.assert_equal(
        tf.shape(x)[0], size, "There must be one adapter id for each example."
    )
    with tf.control_dependencies([check]):
        return tf.reshape(tf.identity(x), shape)
