"""The product of inputs with a transformed kernel, without a weight gradient.

`x H W G` can be had by transforming the activations on either side of `x W`
(`reflections.multiply`), or by one product with the folded kernel `H W G`. The
second touches `W` where the first touches all of `x` and `y`, and is cheaper
wherever activations have more rows than the kernel. The expensive part of it is
the gradient of the folded kernel, a whole `xᵀ g`. It is not needed: whatever
the method and the side, a folded kernel is `W + Σ pᵀ q` with pairs of a few
rows, whose gradients are products of a few rows too.
"""

import functools
import math

from keras import ops

from keras_ether.ops.backend import add_to
from keras_ether.ops.backend import batch_matmul
from keras_ether.ops.backend import concatenate
from keras_ether.ops.backend import is_float32
from keras_ether.ops.backend import reshape
from keras_ether.ops.backend import transpose
from keras_ether.ops.block_diagonal import add_spread
from keras_ether.ops.block_diagonal import arrange
from keras_ether.ops.block_diagonal import contract
from keras_ether.ops.block_diagonal import kernel_rows
from keras_ether.ops.block_diagonal import project
from keras_ether.ops.block_diagonal import spread
from keras_ether.ops.custom_gradient import gradients_by_hand_serve
from keras_ether.ops.custom_gradient import with_gradient
from keras_ether.ops.matrix_view import MatrixView


def pays(x, kernel, view: MatrixView, sides, training: bool) -> bool:
    """Whether a folded kernel is the cheaper form, from static shapes.

    Not in 16 bits, where the sum of a kernel and a small deviation rounds the
    deviation away; not for blocks without thin factors, nor for kernels that
    are no matrix, such as a bank of experts; and only where the folded kernel
    takes no more memory than the activations beside it. Where its gradient by
    hand can't be used, transformed activations need no weight gradient either.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer.
        view: `MatrixView` of the kernel.
        sides: Factors of either side, `None` for one that is not transformed.
        training: Whether a gradient will be asked for.

    Returns:
        Boolean.
    """
    if not (is_float32(x) and is_float32(kernel)):
        return False
    if not all(factors is None or factors[1] is not None for factors in sides):
        return False
    if not view.is_one_matrix or x.shape[-1] is None:
        return False
    if training and not gradients_by_hand_serve(x):
        return False
    _, d, f = view.sizes(kernel.shape)
    if not all(isinstance(size, int) for size in x.shape):
        # `None`, or a symbol while JAX or PyTorch exports a model. A batch has
        # many rows; the calls that have few are made to generate.
        return training
    return math.prod(x.shape) // d * (d + f) >= d * f


def folded_product(
    x,
    kernel,
    view: MatrixView,
    inputs,
    outputs,
    bias,
    orthogonal: bool,
    training: bool,
):
    """`x H W G + bias` by a folded kernel.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer, without experts.
        view: `MatrixView` of the kernel.
        inputs: Factors `(left, right)` of `H`, or `None`.
        outputs: Factors `(left, right)` of `G`, or `None`.
        bias: Bias of the layer, or `None`.
        orthogonal: Whether every block is orthogonal.
        training: Whether a gradient will be asked for. Values and gradients are
            the same either way; with `False`, plain operations are what every
            exporter can read.

    Returns:
        The layer's outputs, before the activation.
    """
    biases = () if bias is None else (bias,)
    _, d, f = view.sizes(kernel.shape)
    if training and orthogonal and outputs is None and d < f:
        functions = _turn, _turn_gradients, _turn_tangent
        term = tuple(map(arrange, inputs))
    else:
        functions = _fold, _fold_gradients, _fold_tangent
        term = low_rank_term(view.kernel_matrix(kernel), inputs, outputs)
    if training:
        functions = (functools.partial(f, view) for f in functions)
        return with_gradient(*functions)(x, kernel, *term, *biases)
    folded = _add_pairs(view.kernel_matrix(kernel), _pairs(term))
    return _layer(view, x, folded, kernel, biases)


def low_rank_term(kernel, inputs, outputs):
    """`p` and `q`, once or twice, such that `H W G = W + Σ pᵀ q`.

    `H = I + Lᵀ R` adds the pair `(L, R W)`, `G = I + Mᵀ T` adds the pair
    `((H W Mᵀ)ᵀ, T)`. Its derivative is left to automatic differentiation: all
    arrays but the kernel have a few rows.

    Args:
        kernel: Matrix of shape `(d, f)`.
        inputs: Factors `(left, right)` of `H`, or `None`.
        outputs: Factors `(left, right)` of `G`, or `None`.

    Returns:
        `(p, q)` or `(p, q, p, q)`, each of as many rows as the blocks have
        factors, in the form that `block_diagonal.arrange` gives.
    """
    term = ()
    if inputs is not None:
        left, right = inputs
        term = arrange(left), kernel_rows(right, kernel)
    if outputs is not None:
        m, t = outputs
        rows = kernel_rows(m, transpose(kernel))
        for p, q in _pairs(term):
            rows = add_spread(rows, kernel_rows(m, transpose(q)), p)
        term += rows, arrange(t)
    if len(term) == 4 and all(len(factor.shape) == 2 for factor in term):
        # Products with two pairs take little more time than with one.
        term = concatenate(term[::2]), concatenate(term[1::2])
    return term


def _pairs(term):
    """`(p, q)` pairs of a term, a bias behind them left out."""
    return list(zip(term[::2], term[1::2], strict=False))


def _biases(rest):
    return rest[-1:] if len(rest) % 2 else ()


def _add_pairs(matrix, pairs):
    for p, q in pairs:
        matrix = add_outer(matrix, p, q)
    return matrix


def _layer(view, x, folded, kernel, biases):
    y = view.product(x, view.from_kernel_matrix(folded, kernel.shape))
    for bias in biases:
        y = add_to(y, bias)
    return y


# A kernel plus pairs of factors: `y = x (W + Σ pᵀ q) + bias`.


def _fold(view, x, kernel, *rest):
    pairs = _pairs(rest)
    folded = _add_pairs(view.kernel_matrix(kernel), pairs)
    rows = view.inputs_matrix(x)
    projections = tuple(project(rows, p) for p, _ in pairs)
    y = _layer(view, x, folded, kernel, _biases(rest))
    return y, ((folded,), projections)


def _fold_gradients(view, arguments, kept, upstream):
    (x, kernel, *rest), ((folded,), projections) = arguments, kept
    rows, dy = view.inputs_matrix(x), view.outputs_matrix(upstream)
    gradients = []
    for (p, q), s in zip(_pairs(rest), projections, strict=True):
        # Of `s = x pᵀ` and `s q`, neither of which the product computes.
        gradients += [contract(project(dy, q), rows, p), contract(s, dy, q)]

    def dx():
        return view.from_inputs_matrix(dy @ transpose(folded), x)

    def d_kernel():
        return view.from_kernel_matrix(transpose(rows) @ dy, kernel.shape)

    return dx, d_kernel, *gradients, *_bias_gradients(upstream, rest)


def _fold_tangent(view, arguments, kept, y, tangents):
    (x, kernel, *rest), ((folded,), projections) = arguments, kept
    dx, d_kernel, *d_rest = tangents
    rows = view.inputs_matrix(x)
    found = []
    if dx is not None:
        folded = view.from_kernel_matrix(folded, kernel.shape)
        found.append(view.product(dx, folded))
    if d_kernel is not None:
        found.append(view.product(x, d_kernel))
    for (_, q), (dp, dq), s in zip(
        _pairs(rest), _pairs(d_rest), projections, strict=True
    ):
        thin = []
        if dp is not None:
            thin.append(spread(project(rows, dp), q))
        if dq is not None:
            thin.append(spread(s, dq))
        found += [view.from_outputs_matrix(dy, y) for dy in thin]
    return _sum(found, *_biases(d_rest))


# An orthogonal `H = I + pᵀ r` on the narrow side of a kernel that is wider than
# high: `y = x H W + bias`. Since `dx = dz Hᵀ`, the gradient at `z = x H` is
# `dz = dx H`, and nothing as wide as the outputs is read a second time:
#
#     dp = (dz rᵀ)ᵀ x = (dx (r Hᵀ)ᵀ)ᵀ x        dr = (x pᵀ)ᵀ dz = (x pᵀ)ᵀ dx H


def _turn(view, x, kernel, p, r, *biases):
    matrix = view.kernel_matrix(kernel)
    folded = add_outer(matrix, p, kernel_rows(r, matrix))
    s = project(view.inputs_matrix(x), p)
    return _layer(view, x, folded, kernel, biases), ((folded, s),)


def _turn_gradients(view, arguments, kept, upstream):
    (x, kernel, p, r, *biases), ((folded, s),) = arguments, kept
    rows, dy = view.inputs_matrix(x), view.outputs_matrix(upstream)
    dx = dy @ transpose(folded)
    dp = contract(project(dx, _times_transposed(r, p, r)), rows, p)
    dr = contract(s, dx, r)
    dr = dr + dr @ transpose(p) @ r

    def d_kernel():
        gradient = transpose(rows) @ dy
        thin = kernel_rows(p, gradient)
        gradient = add_outer(gradient, r, thin)
        return view.from_kernel_matrix(gradient, kernel.shape)

    d_biases = _bias_gradients(upstream, biases)
    return view.from_inputs_matrix(dx, x), d_kernel, dp, dr, *d_biases


def _turn_tangent(view, arguments, kept, y, tangents):
    (x, kernel, p, r, *_), ((folded, s),) = arguments, kept
    dx, d_kernel, dp, dr, *d_biases = tangents
    rows = view.inputs_matrix(x)
    # The tangent of `x H` times `Hᵀ`, which the folded kernel takes out again.
    thin = [] if dx is None else [dx]
    for dz in (
        None
        if dp is None
        else spread(project(rows, dp), _times_transposed(r, p, r)),
        None if dr is None else spread(s, _times_transposed(dr, p, r)),
    ):
        if dz is not None:
            thin.append(view.from_inputs_matrix(dz, x))
    found = []
    if thin:
        folded = view.from_kernel_matrix(folded, kernel.shape)
        found.append(view.product(sum(thin[1:], thin[0]), folded))
    if d_kernel is not None:
        z = view.from_inputs_matrix(rows + spread(s, r), x)
        found.append(view.product(z, d_kernel))
    return _sum(found, *d_biases)


def _times_transposed(factor, p, r):
    """`factor Hᵀ` for `H = I + pᵀ r`."""
    return factor + factor @ transpose(r) @ p


def _sum(found, *d_biases):
    for d_bias in d_biases:
        if d_bias is not None:
            found = [*found, d_bias]
    return sum(found[1:], found[0])


def _bias_gradients(upstream, rest):
    return [
        functools.partial(_bias_gradient, upstream, bias)
        for bias in _biases(rest)
    ]


def _bias_gradient(upstream, bias):
    leading = len(upstream.shape) - len(bias.shape)
    ones = [i for i, size in enumerate(bias.shape) if size == 1]
    axes = [*range(leading), *(leading + i for i in ones)]
    return reshape(ops.sum(upstream, axis=axes), bias.shape)


def add_outer(matrix, p, q):
    """`matrix + pᵀ q`, for factors of which `arrange` may have left one."""
    if len(p.shape) == 2:
        return add_spread(matrix, transpose(p), q)
    blocks, k, width = p.shape
    q = reshape(q, (blocks, k, -1))
    outer = batch_matmul(transpose(p), q)
    return matrix + reshape(outer, (blocks * width, -1))
