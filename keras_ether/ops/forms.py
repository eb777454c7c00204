"""Functions that the forms of a product with a low-rank term share.

A form consists of a forward function, its gradient and its tangent, see
`custom_gradient.with_gradient`. All take a `MatrixView` first, then inputs,
kernel, `p` and `q` once or twice, and a bias if there is one.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

from keras import ops

from keras_ether.ops.backend import reshape
from keras_ether.types import Arrays
from keras_ether.types import Gradients
from keras_ether.types import Saved
from keras_ether.types import Tensor

Form: TypeAlias = tuple[
    Callable[..., tuple[Tensor, Saved]],
    Callable[..., Gradients],
    Callable[..., Tensor],
]


def pairs_of(term: Arrays) -> list[tuple[Tensor, Tensor]]:
    """The `(p, q)` pairs of a term, without a bias after them."""
    return list(zip(term[::2], term[1::2], strict=False))


def biases_of(rest: Arrays) -> Arrays:
    return rest[-1:] if len(rest) % 2 else ()


def sum_of(found: list[Tensor], *d_biases: Tensor) -> Tensor:
    for d_bias in d_biases:
        if d_bias is not None:
            found = [*found, d_bias]
    return sum(found[1:], found[0])


def bias_gradients(
    upstream: Tensor, rest: Arrays
) -> list[Callable[[], Tensor]]:
    return [
        functools.partial(_bias_gradient, upstream, bias)
        for bias in biases_of(rest)
    ]


def _bias_gradient(upstream: Tensor, bias: Tensor) -> Tensor:
    leading = len(upstream.shape) - len(bias.shape)
    ones = [i for i, size in enumerate(bias.shape) if size == 1]
    axes = [*range(leading), *(leading + i for i in ones)]
    return reshape(ops.sum(upstream, axis=axes), bias.shape)
