"""Functions whose gradient is written by hand, on any backend.

`keras.ops.custom_gradient` is enough where a backend traces the function. On
PyTorch it can keep the function's arguments and nothing else, and what it
computes a second time there takes longer than all that is saved.
"""

import functools
from itertools import chain
from itertools import islice

import keras
from keras import ops


def with_gradient(forward, backward):
    """A function of arrays with a gradient of its own.

    Args:
        forward: Function of arrays that returns its output, an array, and what
            `backward` needs of what it has computed: a tuple of tuples of
            arrays.
        backward: Function `(arguments, kept, upstream)` that returns a gradient
            for each of the arguments, or, for one that is dear and seldom
            asked for, a function without arguments that computes it.

    Returns:
        A function of the same arguments that returns the output. It can be
        differentiated twice.
    """
    if keras.backend.backend() == "torch":
        return functools.partial(_Function.apply, forward, backward)

    @ops.custom_gradient
    def function(*arguments):
        output, kept = forward(*arguments)

        def gradient(upstream):
            found = backward(arguments, kept, upstream)
            # A compiler leaves out what nobody asks for.
            return tuple(g() if callable(g) else g for g in found)

        return output, gradient

    return function


def _where_needed(gradient, needed):
    if not callable(gradient):
        return gradient
    return gradient() if needed else None


if keras.backend.backend() == "torch":
    import torch

    class _Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, forward, backward, *arguments):
            output, kept = forward(*arguments)
            ctx.functions = forward, backward
            ctx.counts = [len(arguments), *map(len, kept)]
            ctx.save_for_backward(*arguments, *chain.from_iterable(kept))
            return output

        @staticmethod
        def backward(ctx, upstream):
            forward, backward = ctx.functions
            saved = iter(ctx.saved_tensors)
            arguments, *kept = [tuple(islice(saved, n)) for n in ctx.counts]
            if torch.is_grad_enabled():
                # A second derivative: what was kept does not know where it
                # comes from.
                _, kept = forward(*arguments)
            found = backward(arguments, kept, upstream)
            needed = ctx.needs_input_grad[2:]
            return None, None, *map(_where_needed, found, needed)
