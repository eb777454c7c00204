"""The form that multiplies by a folded kernel, `FOLD`.

y = x (W + Σ pᵀ q) + bias
"""

from keras_ether.ops.backend import add_to
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import add_outer
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


def add_pairs(matrix: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    for p, q in pairs:
        matrix = add_outer(matrix, p, q)
    return matrix


def layer_output(
    view: MatrixView,
    x: Tensor,
    folded: Tensor,
    kernel: Tensor,
    biases: Arrays,
) -> Tensor:
    y = view.product(x, view.from_kernel_matrix(folded, kernel.shape))
    for bias in biases:
        y = add_to(y, bias)
    return y


def _fold(
    view: MatrixView, x: Tensor, kernel: Tensor, *rest: Tensor
) -> tuple[Tensor, Saved]:
    pairs = pairs_of(rest)
    folded = add_pairs(view.kernel_matrix(kernel), pairs)
    rows = view.inputs_matrix(x)
    projections = tuple(project(rows, p) for p, _ in pairs)
    y = layer_output(view, x, folded, kernel, biases_of(rest))
    return y, ((folded,), projections)


def _fold_gradients(
    view: MatrixView,
    arguments: Arrays,
    saved: Saved,
    upstream: Tensor,
) -> Gradients:
    (x, kernel, *rest), ((folded,), projections) = arguments, saved
    rows, dy = view.inputs_matrix(x), view.outputs_matrix(upstream)
    gradients: list[Tensor] = []
    for (p, q), s in zip(pairs_of(rest), projections, strict=True):
        # As if the product were computed as `x W + s q` with `s = x pᵀ`.
        gradients += [contract(project(dy, q), rows, p), contract(s, dy, q)]

    def dx() -> Tensor:
        return view.from_inputs_matrix(dy @ transpose(folded), x)

    def d_kernel() -> Tensor:
        return view.from_kernel_matrix(transpose(rows) @ dy, kernel.shape)

    return dx, d_kernel, *gradients, *bias_gradients(upstream, rest)


def _fold_tangent(
    view: MatrixView,
    arguments: Arrays,
    saved: Saved,
    y: Tensor,
    tangents: Arrays,
) -> Tensor:
    (x, kernel, *rest), ((folded,), projections) = arguments, saved
    dx, d_kernel, *d_rest = tangents
    rows = view.inputs_matrix(x)
    found = []
    if dx is not None:
        folded = view.from_kernel_matrix(folded, kernel.shape)
        found.append(view.product(dx, folded))
    if d_kernel is not None:
        found.append(view.product(x, d_kernel))
    for (_, q), (dp, dq), s in zip(
        pairs_of(rest), pairs_of(d_rest), projections, strict=True
    ):
        thin = []
        if dp is not None:
            thin.append(spread(project(rows, dp), q))
        if dq is not None:
            thin.append(spread(s, dq))
        found += [view.from_outputs_matrix(dy, y) for dy in thin]
    return sum_of(found, *biases_of(d_rest))


FOLD: Form = _fold, _fold_gradients, _fold_tangent
