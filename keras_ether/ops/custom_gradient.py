"""Functions with a custom derivative, on any backend.

Each backend needs its own form. JAX takes a tangent, from which it derives
gradients, forward mode and every mixture of both. TensorFlow takes a gradient.
On PyTorch, `keras.ops.custom_gradient` saves only the function's arguments, and
recomputing the rest takes longer than the custom gradient gains. So a
`torch.autograd.Function` saves the intermediate values too.
"""

from collections.abc import Callable
from itertools import chain
from itertools import islice
from typing import Any
from typing import TypeAlias

import keras
from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import is_transformed
from keras_ether.types import Arrays
from keras_ether.types import Gradients
from keras_ether.types import Saved
from keras_ether.types import Tensor

Forward: TypeAlias = Callable[..., tuple[Tensor, Saved]]
Backward: TypeAlias = Callable[[Arrays, Saved, Tensor], Gradients]
Tangent: TypeAlias = Callable[[Arrays, Saved, Tensor, Arrays], Tensor]


def with_gradient(
    forward: Forward, backward: Backward, tangent: Tangent | None = None
) -> Callable[..., Tensor]:
    """A function of arrays with a custom derivative.

    Args:
        forward: Function of arrays that returns its output, an array, and the
            intermediate values that `backward` and `tangent` use: a tuple of
            tuples of arrays.
        backward: Function `(arguments, saved, upstream)` that returns a
            gradient for each argument, or, for an expensive, rarely needed
            gradient, a function without arguments that computes it.
        tangent: Function `(arguments, saved, output, tangents)` that returns
            the tangent of the output, or an array that is broadcast to it. It
            is linear in `tangents`, where a zero tangent is `None`. Without
            this function, JAX differentiates `forward`, for functions where
            that is as efficient. Defaults to `None`.

    Returns:
        A function of the same arguments that returns the output. It can be
        differentiated any number of times, in forward mode too.
    """
    if BACKEND == "jax":
        return _for_jax(forward, tangent)
    if BACKEND == "torch":
        return _for_torch(forward, backward)

    @ops.custom_gradient
    def function(
        *arguments: Tensor,
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        output, saved = forward(*arguments)

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            found = backward(arguments, saved, upstream)
            # The compiler removes unused gradients.
            return tuple(g() if callable(g) else g for g in found)

        return output, gradient

    return function


def is_gradient_wanted(training: bool | Tensor | None) -> bool:
    """Whether a gradient of the current computation may be needed.

    PyTorch does not use the call's `training`: a call that runs again in the
    backward pass does not get it.
    """
    if BACKEND == "torch":
        return torch.is_grad_enabled()
    return training is not False


def custom_gradient_applies(x: Tensor) -> bool:
    """Whether a derivative with respect to `x` would use a custom gradient now.

    It would not under transforms of `torch.func`, in forward mode and while
    PyTorch exports a model, which need plain operations. Nor would it under
    `torch.autocast`, whose casts a custom gradient does not apply.
    """
    if BACKEND != "torch" or isinstance(x, keras.KerasTensor):
        return True
    return not (
        is_transformed()
        or _torch_internals.is_forward_mode()
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )


def _for_jax(
    forward: Forward, tangent: Tangent | None
) -> Callable[..., Tensor]:
    if tangent is None:
        return lambda *arguments: forward(*arguments)[0]

    @jax.custom_jvp
    def function(*arguments: Tensor) -> Tensor:
        return forward(*arguments)[0]

    def rule(arguments: Arrays, tangents: Arrays) -> tuple[Tensor, Tensor]:
        output, saved = forward(*arguments)
        tangents = [
            None if isinstance(t, SymbolicZero) else t for t in tangents
        ]
        found = tangent(arguments, saved, output, tangents)
        return output, ops.broadcast_to(found, output.shape)

    function.defjvp(rule, symbolic_zeros=True)
    return function


def _for_torch(forward: Forward, backward: Backward) -> Callable[..., Tensor]:
    def function(*arguments: Tensor) -> Tensor:
        if custom_gradient_applies(arguments[0]):
            return _Function.apply(forward, backward, *arguments)
        return forward(*arguments)[0]

    return function


if BACKEND == "jax":
    import jax
    from jax.custom_derivatives import SymbolicZero

if BACKEND == "torch":
    import torch

    from keras_ether import _torch_internals

    class _Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            forward: Forward,
            backward: Backward,
            *arguments: Tensor,
        ) -> Tensor:
            output, saved = forward(*arguments)
            ctx.functions = forward, backward
            ctx.counts = [len(arguments), *map(len, saved)]
            ctx.save_for_backward(*arguments, *chain.from_iterable(saved))
            return output

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            forward, backward = ctx.functions
            saved = iter(ctx.saved_tensors)
            arguments, *saved = [tuple(islice(saved, n)) for n in ctx.counts]
            if torch.is_grad_enabled() or is_transformed():
                # For a second derivative, or several upstream gradients: the
                # saved values have no gradient history.
                _, saved = forward(*arguments)
            found = backward(arguments, saved, upstream)
            gradients = [
                (g() if callable(g) else g) if is_needed else None
                for g, is_needed in zip(
                    found, ctx.needs_input_grad[2:], strict=True
                )
            ]
            return None, None, *gradients
