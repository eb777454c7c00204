"""The product of inputs with a transformed kernel, without a weight gradient.

`x H W G` can be had by transforming the activations on either side of `x W`
(`reflections.multiply`), or by one product with the folded kernel `H W G`. The
second touches `W` where the first touches all of `x` and `y`, and is the
cheaper one wherever activations have more rows than the kernel. What is dear in
it is the gradient of the folded kernel, a whole `xᵀ g`. It is not needed: the
gradients of the factors follow from products of a few rows.
"""

import math

import keras
from keras import ops

from keras_ether.quick_ops import add_product
from keras_ether.quick_ops import reshape
from keras_ether.quick_ops import transpose
from keras_ether.reflections import arrange
from keras_ether.reflections import contract
from keras_ether.reflections import is_dense
from keras_ether.reflections import project
from keras_ether.reflections import spread


def pays(x, kernel, view, factors, training):
    """Whether a folded kernel is the cheaper form, from static shapes.

    Not in 16 bits, where the sum of a kernel and a small deviation rounds the
    deviation away; not for blocks without thin factors, nor for experts; and
    only where the folded kernel takes no more memory than the activations
    beside it.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer.
        view: `MatrixView` of the kernel.
        factors: Factors `(left, right)` of either side, `None` for one that
            is not transformed.
        training: Whether a gradient will be asked for.

    Returns:
        Boolean.
    """
    dtypes = {keras.backend.standardize_dtype(a.dtype) for a in (x, kernel)}
    if dtypes != {"float32"}:
        return False
    for factor in factors:
        if factor is not None and factor[1] is None:
            return False
    experts, d, f = view.sizes(kernel.shape)
    if experts > 1 or x.shape[-1] is None:
        return False
    if training and keras.backend.backend() == "torch":
        # There a custom gradient is a Python function that is called at every
        # step, which takes longer than the few passes over one side that a
        # folded kernel saves.
        sides = [left for left, _ in filter(None, factors)]
        if len(sides) == 1 and is_dense(sides[0]):
            return False
    if not all(isinstance(size, int) for size in x.shape):
        # `None`, or a symbol while JAX or PyTorch exports a model. A batch has
        # many rows; the calls that have few are made to generate.
        return training
    return math.prod(x.shape) // d * (d + f) >= d * f


def folded_product(x, kernel, view, inputs, outputs, orthogonal, training):
    """`x H W G` by a folded kernel.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer, without experts.
        view: `MatrixView` of the kernel.
        inputs: Factors `(left, right)` of `H`, or `None`.
        outputs: Factors `(left, right)` of `G`, or `None`.
        orthogonal: Whether every block is orthogonal.
        training: Whether a gradient will be asked for. Values and gradients are
            the same either way; with `False`, plain operations are what every
            exporter can read.

    Returns:
        The layer's outputs, before bias and activation.
    """
    if orthogonal and outputs is None:
        form = _Orthogonal(view)
        factors = arrange(*inputs)
    else:
        form = _LowRank(view)
        factors = _low_rank_factors(view.kernel_matrix(kernel), inputs, outputs)
    return _with_gradient(form, x, kernel, factors, training)


class _Orthogonal:
    """`x H W`, for an orthogonal `H = I + leftᵀ right`.

    Since `dx = dz Hᵀ`, the gradient at `z = x H` is `dz = dx H`, and nothing as
    wide as the outputs has to be gone through again:

        d left = (dz rightᵀ)ᵀ x = (dx (right Hᵀ)ᵀ)ᵀ x
        d right = (x leftᵀ)ᵀ dz = (x leftᵀ)ᵀ dx H
    """

    def __init__(self, view):
        self.view = view

    def updates(self, matrix, left, right):
        return [(left, _rows(right, matrix))]

    def projections(self, x, left, right):
        return (project(x, left),)

    def gradients(self, x, dx, upstream, factors, projections):
        (left, right), (s,) = factors, projections
        dx = self.view.inputs_matrix(dx)
        turned = right + (right @ ops.swapaxes(right, -1, -2)) @ left
        d_right = contract(s, dx, right)
        return (
            contract(project(dx, turned), x, left),
            d_right + (d_right @ ops.swapaxes(left, -1, -2)) @ right,
        )


class _LowRank:
    """`x (W + Σ pᵀ q)`, for one or two pairs of factors of few rows each."""

    def __init__(self, view):
        self.view = view

    def updates(self, matrix, *factors):
        return _pairs(factors)

    def projections(self, x, *factors):
        return tuple(project(x, p) for p, _ in _pairs(factors))

    def gradients(self, x, dx, upstream, factors, projections):
        upstream = self.view.outputs_matrix(upstream)
        found = []
        for (p, q), s in zip(_pairs(factors), projections, strict=True):
            found.append(contract(project(upstream, q), x, p))
            found.append(contract(s, upstream, q))
        return found


def _low_rank_factors(matrix, inputs, outputs):
    """`p, q, ...` with `H W G = W + Σ pᵀ q`, exactly.

    With `H = I + lᵀ r` and `G = I + mᵀ t`, `H W G = W + lᵀ (r W) + (H W mᵀ) t`.
    """
    if inputs is None:
        m, t = arrange(*outputs)
        return _rows(m, transpose(matrix)), t
    left, right = arrange(*inputs)
    a = _rows(right, matrix)
    if outputs is None:
        return left, a
    m, t = arrange(*outputs)
    b = _rows(m, transpose(matrix)) + spread(_rows(m, transpose(a)), left)
    if len(left.shape) == len(t.shape) == 2:
        # One product of twice the rows takes little more time than one of them.
        return ops.concatenate([left, b]), ops.concatenate([a, t])
    return left, a, b, t


def _pairs(factors):
    return list(zip(factors[::2], factors[1::2], strict=True))


def _rows(factor, matrix):
    """`factor @ matrix`, for a factor as `arrange` gives it."""
    if len(factor.shape) == 2:
        return factor @ matrix
    blocks, k, width = factor.shape
    matrix = reshape(matrix, (blocks, width, -1))
    return reshape(factor @ matrix, (blocks * k, -1))


def add_outer(matrix, p, q):
    """`matrix + pᵀ q`, for factors of which `arrange` may have left one."""
    if len(p.shape) == len(q.shape) == 2:
        return add_product(matrix, transpose(p), q)
    if len(p.shape) == 2:
        return matrix + spread(transpose(p), q)
    blocks, k, width = p.shape
    q = reshape(q, (blocks, k, -1))
    return matrix + reshape(ops.swapaxes(p, 1, 2) @ q, (blocks * width, -1))


def _with_gradient(form, x, kernel, factors, training):
    """`x (W + Σ pᵀ q)`, with the form's own gradients of the factors."""
    view = form.view

    def fold(kernel, factors):
        matrix = view.kernel_matrix(kernel)
        for p, q in form.updates(matrix, *factors):
            matrix = add_outer(matrix, p, q)
        return view.from_kernel_matrix(matrix, kernel.shape)

    def keep(x, kernel, *factors):
        rows = view.inputs_matrix(x)
        return fold(kernel, factors), *form.projections(rows, *factors)

    def differentiate(x, factors, folded, projections, upstream):
        dx = view.product_transposed(upstream, folded)
        rows = view.inputs_matrix(x)
        return dx, form.gradients(rows, dx, upstream, factors, projections)

    if not training:
        return view.product(x, fold(kernel, factors))
    if keras.backend.backend() == "torch":
        return _torch_product(view, keep, differentiate, x, kernel, factors)

    @ops.custom_gradient
    def product(x, kernel, *factors):
        folded, *projections = keep(x, kernel, *factors)

        def gradient(upstream):
            dx, d_factors = differentiate(
                x, factors, folded, projections, upstream
            )
            # Nobody asks for it where the kernel is frozen, and a compiler
            # leaves it out.
            d_kernel = transpose(view.inputs_matrix(x))
            d_kernel = d_kernel @ view.outputs_matrix(upstream)
            d_kernel = view.from_kernel_matrix(d_kernel, kernel.shape)
            return dx, d_kernel, *d_factors

        return view.product(x, folded), gradient

    return product(x, kernel, *factors)


def _torch_product(view, keep, differentiate, x, kernel, factors):
    """The same where a custom gradient sees its arguments only.

    What the forward pass keeps is therefore an argument too, with no gradient
    of its own. It still hangs on the factors, so second derivatives are right.
    """
    folded, *projections = keep(x, kernel, *factors)
    count = len(factors)

    @ops.custom_gradient
    def product(x, folded, *rest):
        def gradient(x, folded, *rest, upstream):
            dx, d_factors = differentiate(
                x, rest[:count], folded, rest[count:], upstream
            )
            return dx, None, *d_factors, *(None for _ in projections)

        return view.product(x, folded), gradient

    return product(x, folded, *factors, *projections)
