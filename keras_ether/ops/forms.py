"""The two forms of a product with a low-rank term.

    fold        y = x (W + Σ pᵀ q) + bias
    unfolded    y = x W + Σ (x pᵀ) q + bias

The second writes nothing as large as a kernel or as wide as an activation,
except for `y` and the gradients, and saves only `x` and the thin `x pᵀ` for the
gradients.

A form is a function of a `MatrixView`, inputs, kernel, `p` and `q` once or
twice, and a bias if there is one. It returns the output and what the derivative
uses, see `custom_gradient.with_gradient`: the folded kernel as a matrix, if
there is one, and each `x pᵀ`.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import add_to
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import add_outer
from keras_ether.ops.block_diagonal import add_spread
from keras_ether.ops.block_diagonal import contract
from keras_ether.ops.block_diagonal import project
from keras_ether.ops.block_diagonal import spread
from keras_ether.ops.custom_gradient import with_gradient
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Arrays
from keras_ether.types import Gradients
from keras_ether.types import Saved
from keras_ether.types import Tensor

Form: TypeAlias = Callable[..., tuple[Tensor, Saved]]


def computed(
    form: Form, view: MatrixView, training: bool, *arguments: Tensor
) -> Tensor:
    """A form's output, by plain operations unless in training."""
    if not training:
        return form(view, *arguments, saves=False)[0]
    function = with_gradient(
        functools.partial(form, view),
        functools.partial(_gradients, view),
        functools.partial(_tangent, view),
    )
    return function(*arguments)


def pairs_of(term: Arrays) -> list[tuple[Tensor, Tensor]]:
    """The `(p, q)` pairs of a term, without a bias after them."""
    return list(zip(term[::2], term[1::2], strict=False))


def _biases_of(rest: Arrays) -> Arrays:
    return rest[-1:] if len(rest) % 2 else ()


def _projections(
    view: MatrixView, x: Tensor, rest: Arrays
) -> tuple[Tensor, ...]:
    rows = view.inputs_matrix(x)
    return tuple(project(rows, p) for p, _ in pairs_of(rest))


def fold(
    view: MatrixView,
    x: Tensor,
    kernel: Tensor,
    *rest: Tensor,
    saves: bool = True,
) -> tuple[Tensor, Saved]:
    folded = view.kernel_matrix(kernel)
    for p, q in pairs_of(rest):
        folded = add_outer(folded, p, q)
    projections = _projections(view, x, rest) if saves else ()
    y = view.product(x, view.from_kernel_matrix(folded, kernel.shape))
    for bias in _biases_of(rest):
        y = add_to(y, bias)
    return y, ((folded,), projections)


def unfolded(
    view: MatrixView,
    x: Tensor,
    kernel: Tensor,
    *rest: Tensor,
    saves: bool = True,
) -> tuple[Tensor, Saved]:
    projections = _projections(view, x, rest)
    y = view.product(x, kernel)
    for (_, q), s in zip(pairs_of(rest), projections, strict=True):
        y = _add_rows(view, y, s, q)
    for bias in _biases_of(rest):
        y = add_to(y, bias)
    return y, ((), projections)


def _gradients(
    view: MatrixView, arguments: Arrays, saved: Saved, upstream: Tensor
) -> Gradients:
    """The gradients, as if computed as `x W + s q` with `s = x pᵀ`."""
    (x, kernel, *rest), (folded, projections) = arguments, saved
    rows, dy = view.inputs_matrix(x), view.outputs_matrix(upstream)
    pairs = pairs_of(rest)
    # The upstream gradient is read for `dy qᵀ` and for `sᵀ dy`.
    thin = [project(dy, q) for _, q in pairs]
    gradients: list[Tensor] = []
    for (p, q), s, t in zip(pairs, projections, thin, strict=True):
        gradients += [contract(t, rows, p), contract(s, dy, q)]

    def dx() -> Tensor:
        if folded:
            found = dy @ transpose(folded[0])
        else:
            found = dy @ transpose(view.kernel_matrix(kernel))
            for (p, _), t in zip(pairs, thin, strict=True):
                found = add_spread(found, t, p)
        return view.from_inputs_matrix(found, x)

    def d_kernel() -> Tensor:
        return view.from_kernel_matrix(transpose(rows) @ dy, kernel.shape)

    def d_bias() -> Tensor:
        shape = rest[-1].shape
        leading = len(upstream.shape) - len(shape)
        ones = [leading + i for i, size in enumerate(shape) if size == 1]
        total = ops.sum(upstream, axis=[*range(leading), *ones])
        return reshape(total, shape)

    biases = [d_bias] if len(rest) % 2 else []
    return dx, d_kernel, *gradients, *biases


def _tangent(
    view: MatrixView,
    arguments: Arrays,
    saved: Saved,
    y: Tensor,
    tangents: Arrays,
) -> Tensor:
    """Written so that the transposes of its terms compute the gradients."""
    (x, kernel, *rest), (folded, projections) = arguments, saved
    dx, d_kernel, *d_rest = tangents
    rows = view.inputs_matrix(x)
    d_rows = None if dx is None else view.inputs_matrix(dx)
    found = []
    if dx is not None:
        if folded:
            kernel = view.from_kernel_matrix(folded[0], kernel.shape)
        found.append(view.product(dx, kernel))
    if d_kernel is not None:
        found.append(view.product(x, d_kernel))
    for (p, q), (dp, dq), s in zip(
        pairs_of(rest), pairs_of(d_rest), projections, strict=True
    ):
        thin = []
        if dx is not None and not folded:
            thin.append(spread(_project_by_sums(d_rows, p), q))
        if dp is not None:
            thin.append(spread(project(rows, dp), q))
        if dq is not None:
            thin.append(spread(s, dq))
        found += [view.from_outputs_matrix(dy, y) for dy in thin]
    found += [bias for bias in _biases_of(d_rest) if bias is not None]
    return sum(found[1:], found[0])


def _add_rows(view: MatrixView, y: Tensor, s: Tensor, q: Tensor) -> Tensor:
    """`y + s q`, added where a compiler writes `y`.

    XLA fuses sums into a product, but not a second product: it writes that
    product's result, as wide as `y`, to memory and reads it again.
    """
    columns = len(view.columns)
    is_last = view.outputs.endswith(view.columns)
    if BACKEND != "jax" or len(q.shape) == 3 or not is_last:
        y_rows = add_spread(view.outputs_matrix(y), s, q)
        return view.from_outputs_matrix(y_rows, y)
    leading, last = y.shape[:-columns], y.shape[-columns:]
    s = reshape(s, (*leading, *(1,) * (columns - 1), -1))
    q = reshape(q, (-1, *last))
    return y + sum(s[..., i : i + 1] * q[i] for i in range(q.shape[0]))


def _project_by_sums(x: Tensor, p: Tensor) -> Tensor:
    """`project(x, p)`, whose transpose is `_add_rows`."""
    if len(p.shape) == 3:
        return project(x, p)
    sums = [ops.sum(x * p[i], axis=-1) for i in range(p.shape[0])]
    return ops.stack(sums, axis=-1)
