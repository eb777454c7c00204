"""One call of a function for the small arrays of many, on eager PyTorch."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import is_eager_torch
from keras_ether.ops.backend import is_transformed
from keras_ether.ops.backend import not_compiled
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
        `None` where results may not be used later: in functions that are
        compiled, exported, transformed, or run again in the backward pass, as
        they have to compute everything each time.
    """
    if not is_eager_torch():
        return None
    if x.device.type == "meta" or not gradients_by_hand_serve(x):
        return None
    # PyTorch has no public name for it. `torch.utils.checkpoint` sets hooks.
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return None
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def state(x: Tensor) -> tuple:
    """What differs once a tensor was changed, or another put in its place."""
    try:
        place = x.data_ptr()
    except RuntimeError:
        # A stand-in without memory.
        place = None
    version = 0 if x.is_inference() else x._version
    return version, place, *kind(x)


def kind(x: Tensor) -> tuple:
    """What tensors that are computed with at once have to share."""
    return x.requires_grad, x.dtype, x.device, tuple(x.shape)


def has_hooks(x: Tensor) -> bool:
    """Whether functions of the user's wait for the gradient of a tensor."""
    return bool(x._backward_hooks or x._post_accumulate_grad_hooks)


def of_all(
    function: Callable[..., Arrays], members: Sequence[Arrays]
) -> list[Arrays]:
    """Applies a function to the arrays of all members at once.

    Gradients are those of a call for each member, at the values that the arrays
    have now. A member that leads to no loss has none, and they may be asked for
    any number of times.

    Args:
        function: Function of arrays, each the concatenation of one array of
            every member along the first axis, that returns arrays whose first
            axis is the members. What it returns for a member may depend on no
            other's arrays.
        members: The arrays of each member, of the same shapes, and alike in
            whether they want a gradient.

    Returns:
        For each member, its part of each array that `function` returns.
    """
    count = len(members)
    arrays = [array for same in zip(*members, strict=True) for array in same]
    if torch.is_grad_enabled() and any(a.requires_grad for a in members[0]):
        parts = _OfAll.apply(function, count, *arrays)
    else:
        parts = _parts(function(*_joined(count, arrays)))
    return [parts[i::count] for i in range(count)]


def _joined(count: int, arrays: Arrays) -> list[Tensor]:
    starts = range(0, len(arrays), count)
    return [torch.cat(arrays[i : i + count]) for i in starts]


def _parts(outputs: Arrays) -> tuple[Tensor, ...]:
    return tuple(part for output in outputs for part in output.unbind())


def _split(x: Tensor | None, count: int) -> list[Tensor | None]:
    """The inverse of concatenating."""
    if x is None:
        return [None] * count
    size = x.shape[0] // count
    parts = [x.narrow(0, size * i, size) for i in range(count)]
    # PyTorch lets nobody change a view of what may be differentiated.
    return [p.clone() for p in parts] if torch.is_grad_enabled() else parts


def _stack(gradients: Sequence[Tensor | None]) -> Tensor:
    if any(g is None for g in gradients):
        zero = torch.zeros_like(next(g for g in gradients if g is not None))
        gradients = [zero if g is None else g for g in gradients]
    return torch.stack(gradients)


if BACKEND == "torch":

    class _OfAll(torch.autograd.Function):
        # It keeps everything as its own: what PyTorch saves is freed after one
        # backward pass, and each member may have one.
        @staticmethod
        def forward(
            ctx: Any, function: Callable, count: int, *arrays: Tensor
        ) -> tuple[Tensor, ...]:
            ctx.set_materialize_grads(False)
            ctx.function, ctx.count, ctx.arrays = function, count, arrays
            ctx.states = [state(array) for array in arrays]
            ctx.joined = _joined(count, arrays)
            for joined, array in zip(ctx.joined, arrays[::count], strict=True):
                joined.requires_grad_(array.requires_grad)
            with torch.enable_grad():
                ctx.outputs = function(*ctx.joined)
            return _parts([output.detach() for output in ctx.outputs])

        @staticmethod
        @not_compiled
        def backward(
            ctx: Any, *upstream: Tensor | None
        ) -> tuple[Tensor | None, ...]:
            count = ctx.count
            of_outputs = [
                upstream[i : i + count] for i in range(0, len(upstream), count)
            ]
            used = [
                i
                for i in range(count)
                if any(gradients[i] is not None for gradients in of_outputs)
            ]
            members: Sequence[int] = range(count)
            joined, outputs = ctx.joined, ctx.outputs
            if torch.is_grad_enabled() or is_transformed():
                # For a second derivative, or several upstream gradients.
                members = used
                joined, outputs = _again(ctx, used)
            found = _gradients(
                joined,
                outputs,
                [[of_output[i] for i in members] for of_output in of_outputs],
            )
            result = [None] * len(ctx.arrays)
            for i, gradient in enumerate(found):
                parts = _split(gradient, len(members))
                for member, part in zip(members, parts, strict=True):
                    if member in used:
                        result[i * count + member] = part
            return None, None, *result

    def _again(ctx: Any, members: list[int]) -> tuple[Arrays, Arrays]:
        """The arrays of some members, joined, and what is computed of them."""
        arrays = []
        for i, joined in enumerate(ctx.joined):
            values = _split(joined.detach(), ctx.count)
            for member in members:
                place = i * ctx.count + member
                array = ctx.arrays[place]
                if not array.requires_grad:
                    array = values[member]
                elif state(array) != ctx.states[place]:
                    raise RuntimeError(
                        "A vector needed for the gradient of a gradient has "
                        "been modified by an inplace operation since the "
                        "forward pass."
                    )
                arrays.append(array)
        with torch.enable_grad():
            joined = _joined(len(members), arrays)
            return joined, ctx.function(*joined)

    def _gradients(
        joined: Arrays,
        outputs: Arrays,
        upstream: Sequence[Sequence[Tensor | None]],
    ) -> list[Tensor | None]:
        """Gradients of the joined arrays, `None` for those that want none."""
        used = [
            (output, _stack(gradients))
            for output, gradients in zip(outputs, upstream, strict=True)
            if output.requires_grad and any(g is not None for g in gradients)
        ]
        wanted = [array for array in joined if array.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in used],
                wanted,
                [gradient for _, gradient in used],
                retain_graph=True,
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
        )
        return [next(found) if a.requires_grad else None for a in joined]
