"""What is known of values while operations are recorded and not run."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
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
    """Whether operations are recorded now, by a compiler or an exporter."""
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
    """The values of an array or tensor, `None` where there are none yet."""
    if is_traced() or isinstance(x, keras.KerasTensor):
        return None
    if BACKEND == "jax" and isinstance(x, jax.core.Tracer):
        return None
    if BACKEND == "torch" and torch.is_tensor(x):
        return None if x.is_meta else to_numpy(x)
    return np.asarray(x)


def compiled(function: Callable, by_jax: bool = True) -> Callable:
    """A function that JAX runs as one program; elsewhere it is as it is.

    Operation by operation, JAX would compile a program for each.

    Args:
        function: The function.
        by_jax: Whether it is compiled there. Defaults to `True`.
    """
    return jax.jit(function) if BACKEND == "jax" and by_jax else function


def at_once() -> contextlib.AbstractContextManager:
    """A context that runs operations on arrays although others are recorded."""
    if BACKEND == "jax":
        return jax.ensure_compile_time_eval()
    if BACKEND == "tensorflow":
        return tf.init_scope()
    return contextlib.nullcontext()


def forget_recorded(error: Exception) -> None:
    """Lets functions within models be recorded again, where JAX has to.

    A `jax.jit` that was recorded within another keeps values of that one, and
    can't run any more.

    Args:
        error: What its next run raised.
    """
    if BACKEND == "jax" and isinstance(error, jax.errors.UnexpectedTracerError):
        jax.clear_caches()


def no_gradient() -> contextlib.AbstractContextManager:
    """A context without gradients, as that of `predict` on PyTorch."""
    if BACKEND == "torch":
        return torch.no_grad()
    return contextlib.nullcontext()


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """A context in which PyTorch draws the same each time, and then as before.

    Elsewhere all that is drawn depends on variables.
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

    It runs two reads of variables in any order.
    """
    if BACKEND == "tensorflow":
        return tf.control_dependencies(values)
    return contextlib.nullcontext()


def same_leading_axis(x: Tensor, size: Any) -> Tensor:
    """`x`, asserted to have this leading axis where the graph runs.

    TensorFlow knows some sizes only then, and a product or a sum of other sizes
    could still be computed.

    Args:
        x: Tensor.
        size: Integer, or a scalar tensor.
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
