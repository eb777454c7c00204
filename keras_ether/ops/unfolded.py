"""The form that leaves the kernel as it is, `UNFOLDED`.

    y = x W + Σ (x pᵀ) q + bias

Except for `y` and the gradients, nothing as large as a kernel or as wide as an
activation is written. Only `x` and the thin `x pᵀ` are saved for the gradients.
"""

from keras import ops

from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import add_to
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import add_spread
from keras_ether.ops.block_diagonal import contract
from keras_ether.ops.block_diagonal import project
from keras_ether.ops.block_diagonal import spread
from keras_ether.ops.forms import Form
from keras_ether.ops.forms import bias_gradients
from keras_ether.ops.forms import biases_of
from keras_ether.ops.forms import pairs_of
from keras_ether.ops.forms import sum_of
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Arrays
from keras_ether.types import Gradients
from keras_ether.types import Saved
from keras_ether.types import Tensor


def _unfolded(
    view: MatrixView, x: Tensor, kernel: Tensor, *rest: Tensor
) -> tuple[Tensor, Saved]:
    pairs = pairs_of(rest)
    rows = view.inputs_matrix(x)
    projections = tuple(project(rows, p) for p, _ in pairs)
    y = view.product(x, kernel)
    for (_, q), s in zip(pairs, projections, strict=True):
        y = _add_rows(view, y, s, q)
    for bias in biases_of(rest):
        y = add_to(y, bias)
    return y, (projections,)


def _unfolded_gradients(
    view: MatrixView,
    arguments: Arrays,
    saved: Saved,
    upstream: Tensor,
) -> Gradients:
    (x, kernel, *rest), (projections,) = arguments, saved
    rows, dy = view.inputs_matrix(x), view.outputs_matrix(upstream)
    pairs = pairs_of(rest)
    # The upstream gradient is read for `dy qᵀ` and for `sᵀ dy`.
    thin = [project(dy, q) for _, q in pairs]
    gradients: list[Tensor] = []
    for (p, q), s, t in zip(pairs, projections, thin, strict=True):
        gradients += [contract(t, rows, p), contract(s, dy, q)]

    def dx() -> Tensor:
        found = dy @ transpose(view.kernel_matrix(kernel))
        for (p, _), t in zip(pairs, thin, strict=True):
            found = add_spread(found, t, p)
        return view.from_inputs_matrix(found, x)

    def d_kernel() -> Tensor:
        return view.from_kernel_matrix(transpose(rows) @ dy, kernel.shape)

    return dx, d_kernel, *gradients, *bias_gradients(upstream, rest)


def _unfolded_tangent(
    view: MatrixView,
    arguments: Arrays,
    saved: Saved,
    y: Tensor,
    tangents: Arrays,
) -> Tensor:
    """Written so that the transposes of its terms compute the gradients."""
    (x, kernel, *rest), (projections,) = arguments, saved
    dx, d_kernel, *d_rest = tangents
    rows = view.inputs_matrix(x)
    d_rows = None if dx is None else view.inputs_matrix(dx)
    found = []
    if dx is not None:
        found.append(view.product(dx, kernel))
    if d_kernel is not None:
        found.append(view.product(x, d_kernel))
    for (p, q), (dp, dq), s in zip(
        pairs_of(rest), pairs_of(d_rest), projections, strict=True
    ):
        thin = []
        if dx is not None:
            thin.append(spread(_project_by_sums(d_rows, p), q))
        if dp is not None:
            thin.append(spread(project(rows, dp), q))
        if dq is not None:
            thin.append(spread(s, dq))
        found += [view.from_outputs_matrix(dy, y) for dy in thin]
    return sum_of(found, *biases_of(d_rest))


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


UNFOLDED: Form = _unfolded, _unfolded_gradients, _unfolded_tangent
