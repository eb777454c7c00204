"""One call of a function for the small arrays of many, on eager PyTorch."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.custom_gradient import gradients_by_hand_serve
from keras_ether.types import Arrays
from keras_ether.types import Tensor

if BACKEND == "torch":
    import torch


def mode_of_results(x: Tensor) -> tuple[bool, ...] | None:
    """The mode of PyTorch in which results computed now may be used later on.

    Args:
        x: Tensor, one of those computed with.

    Returns:
        Whether gradients may be asked for, and whether it is inference mode; or
        `None` where results may not be used later: on other backends, and in
        functions that are compiled, exported, transformed, or run again in the
        backward pass, as they have to compute everything each time.
    """
    if BACKEND != "torch" or torch.compiler.is_compiling():
        return None
    if x.device.type == "meta" or not gradients_by_hand_serve(x):
        return None
    # PyTorch has no public name for it. `torch.utils.checkpoint` sets hooks.
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def version(x: Tensor) -> int:
    """A number that changes when PyTorch changes a tensor in place."""
    return 0 if x.is_inference() else x._version


def of_all(
    function: Callable[..., Arrays], members: Sequence[Arrays]
) -> list[Arrays]:
    """Applies a function to the arrays of all members at once.

    Gradients are those of a call for each member. A member that leads to no
    loss has none, and they may be asked for any number of times.

    Args:
        function: Function of arrays, each the concatenation of one array of
            every member along the first axis, that returns arrays whose first
            axis is the members. What it returns for a member may depend on no
            other's arrays.
        members: The arrays of each member, of the same shapes.

    Returns:
        For each member, its part of each array that `function` returns.
    """
    count = len(members)
    arrays = [array for same in zip(*members, strict=True) for array in same]
    if torch.is_grad_enabled():
        parts = _OfAll.apply(function, count, *arrays)
    else:
        parts = _parts(function(*_joined(count, arrays)))
    return [parts[i::count] for i in range(count)]


def _joined(count: int, arrays: Arrays) -> list[Tensor]:
    starts = range(0, len(arrays), count)
    return [torch.cat(arrays[i : i + count]) for i in starts]


def _parts(outputs: Arrays) -> tuple[Tensor, ...]:
    return tuple(part for output in outputs for part in output.unbind())


def _chunks(x: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return (None,) * count if x is None else x.chunk(count)


def _stack(gradients: Sequence[Tensor | None]) -> Tensor:
    if any(g is None for g in gradients):
        zero = torch.zeros_like(next(g for g in gradients if g is not None))
        gradients = [zero if g is None else g for g in gradients]
    return torch.stack(gradients)


if BACKEND == "torch":
    # PyTorch has no public name for it.
    _is_transformed = torch._C._are_functorch_transforms_active

    class _OfAll(torch.autograd.Function):
        # It keeps everything as its own: what PyTorch saves is freed after one
        # backward pass, and each member may have one.
        @staticmethod
        def forward(
            ctx: Any, function: Callable, count: int, *arrays: Tensor
        ) -> tuple[Tensor, ...]:
            ctx.set_materialize_grads(False)
            ctx.function, ctx.count, ctx.arrays = function, count, arrays
            ctx.joined = [a.requires_grad_() for a in _joined(count, arrays)]
            with torch.enable_grad():
                ctx.outputs = function(*ctx.joined)
            return _parts([output.detach() for output in ctx.outputs])

        @staticmethod
        def backward(
            ctx: Any, *upstream: Tensor | None
        ) -> tuple[Tensor | None, ...]:
            count, joined, outputs = ctx.count, ctx.joined, ctx.outputs
            if torch.is_grad_enabled() or _is_transformed():
                # For a second derivative, or several upstream gradients.
                with torch.enable_grad():
                    joined = _joined(count, ctx.arrays)
                    outputs = ctx.function(*joined)
            of_members = [upstream[i::count] for i in range(count)]
            is_used = [any(g is not None for g in m) for m in of_members]
            of_outputs = zip(*of_members, strict=True)
            used = [
                (output, _stack(gradients))
                for output, gradients in zip(outputs, of_outputs, strict=True)
                if any(g is not None for g in gradients)
            ]
            found = torch.autograd.grad(
                [output for output, _ in used],
                joined,
                [gradient for _, gradient in used],
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            return (
                None,
                None,
                *(
                    gradient if used else None
                    for of_array in found
                    for gradient, used in zip(
                        _chunks(of_array, count), is_used, strict=True
                    )
                ),
            )
