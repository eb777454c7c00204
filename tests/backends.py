"""Derivatives and compilation, by whichever backend runs."""

import functools
import warnings

import keras
import numpy as np


def gradients(function, arrays):
    """Gradients of a scalar function with respect to numpy arrays."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        gradient = jax.grad(function, argnums=tuple(range(len(arrays))))
        # One program is compiled sooner than one for each operation.
        found = jax.jit(gradient)(*arrays)
    elif backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        found = tape.gradient(value, tensors)
    else:
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        found = torch.autograd.grad(function(*tensors), tensors)
    return [np.asarray(keras.ops.convert_to_numpy(g)) for g in found]


def squared_gradient_derivative(function, arrays):
    """Gradient of `Σ gradient²` of a scalar function of one array."""
    backend = keras.backend.backend()
    (array,) = arrays
    if backend == "jax":
        import jax

        def inner(a):
            return (jax.grad(function)(a) ** 2).sum()

        found = jax.jit(jax.grad(inner))(array)
    elif backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.constant(array)
        with tf.GradientTape() as outer:
            outer.watch(tensor)
            with tf.GradientTape() as tape:
                tape.watch(tensor)
                value = function(tensor)
            total = tf.reduce_sum(tape.gradient(value, tensor) ** 2)
        found = outer.gradient(total, tensor)
    else:
        import torch

        tensor = torch.tensor(array, requires_grad=True)
        (first,) = torch.autograd.grad(
            function(tensor), tensor, create_graph=True
        )
        (found,) = torch.autograd.grad((first**2).sum(), tensor)
    return np.asarray(keras.ops.convert_to_numpy(found))


def directional_derivative(function, arrays, directions):
    """The derivative of an array along a direction, by forward mode."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def tangent(points, along):
            return jax.jvp(function, points, along)[1]

        # As above.
        found = jax.jit(tangent)(tuple(arrays), tuple(directions))
    elif backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        tangents = [tf.constant(array) for array in directions]
        with tf.autodiff.ForwardAccumulator(tensors, tangents) as accumulator:
            value = function(*tensors)
        found = accumulator.jvp(value)
    else:
        import torch

        arguments = (
            tuple(map(torch.tensor, group)) for group in (arrays, directions)
        )
        with warnings.catch_warnings():
            # PyTorch's own, when it first loads its rules.
            warnings.filterwarnings("ignore", ".*torch.jit.script")
            _, found = torch.func.jvp(function, *arguments)
    return np.asarray(keras.ops.convert_to_numpy(found))


def compile_function(function):
    """The function as the backend's compiler makes it."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import torch

    return torch.compile(function, backend="aot_eager")


def compile_models_as_users_do(monkeypatch):
    """For tests of equal bits in two programs: JAX's own emitters.

    The quick ones of the other tests (`conftest.py`) round the same operations
    differently beside different neighbours.
    """
    if keras.backend.backend() == "jax":
        import jax
        from keras.src.backend.jax import trainer

        jit = functools.partial(
            jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True}
        )
        monkeypatch.setattr(trainer, "jit", jit)


def finite_differences(function, arrays, step=1e-6):
    """Central differences of a scalar float64 function of numpy arrays."""
    arrays = [np.asarray(array, "float64") for array in arrays]
    found = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            value = array[place]
            array[place] = value + step
            above = function(*arrays)
            array[place] = value - step
            below = function(*arrays)
            array[place] = value
            gradient[place] = (above - below) / (2 * step)
        found.append(gradient)
    return found
