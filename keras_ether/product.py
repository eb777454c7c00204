"""The product of inputs with a transformed kernel, without a weight gradient.

`x H W G` can be had by transforming the activations on either side of `x W`
(`reflections.multiply`), or by one product with the folded kernel `H W G`. The
second touches `W` where the first touches all of `x` and `y`, and is the
cheaper one wherever activations have more rows than the kernel. What is dear in
it is the gradient of the folded kernel, a whole `xᵀ g`. It is not needed: the
gradients of the factors follow from products of a few rows.
"""

import math
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_ether.custom_gradient import with_gradient
from keras_ether.quick_ops import concatenate
from keras_ether.quick_ops import is_float32
from keras_ether.quick_ops import reshape
from keras_ether.quick_ops import transpose
from keras_ether.reflections import multiply
from keras_ether.thin_factors import add_rows
from keras_ether.thin_factors import add_spread
from keras_ether.thin_factors import arrange
from keras_ether.thin_factors import arrange_gradients
from keras_ether.thin_factors import contract
from keras_ether.thin_factors import inner
from keras_ether.thin_factors import matrix_rows
from keras_ether.thin_factors import matrix_rows_gradient
from keras_ether.thin_factors import project


def pays(x, kernel, view, sides, training):
    """Whether a folded kernel is the cheaper form, from static shapes.

    Not in 16 bits, where the sum of a kernel and a small deviation rounds the
    deviation away; not for blocks without thin factors, nor for experts; and
    only where the folded kernel takes no more memory than the activations
    beside it.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer.
        view: `MatrixView` of the kernel.
        sides: `Blocks` of either side, `None` for one that is not transformed.
        training: Whether a gradient will be asked for.

    Returns:
        Boolean.
    """
    if not (is_float32(x) and is_float32(kernel)):
        return False
    if not all(blocks is None or blocks.are_thin for blocks in sides):
        return False
    experts, d, f = view.sizes(kernel.shape)
    if experts > 1 or x.shape[-1] is None:
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
        inputs: `Blocks` of `H`, or `None`.
        outputs: `Blocks` of `G`, or `None`.
        orthogonal: Whether every block is orthogonal.
        training: Whether a gradient will be asked for. Values and gradients are
            the same either way; with `False`, plain operations are what every
            exporter can read.

    Returns:
        The layer's outputs, before bias and activation.
    """
    form = _form(view.sizes(kernel.shape), inputs, outputs, orthogonal)
    numbers = [n for side in (inputs, outputs) if side for n in side.numbers]

    def fold(kernel, numbers):
        matrix = view.kernel_matrix(kernel)
        pairs, kept = form.pairs(matrix, *numbers)
        for p, q in pairs:
            matrix = add_outer(matrix, p, q)
        return matrix, pairs, kept

    def forward(x, kernel, *numbers):
        folded, pairs, kept = fold(kernel, numbers)
        rows = view.inputs_matrix(x)
        projections = tuple(project(rows, p) for p, _ in pairs)
        y = view.product(x, view.from_kernel_matrix(folded, kernel.shape))
        return y, ((folded,), projections, *pairs, *kept)

    def backward(arguments, kept, upstream):
        x, kernel, *numbers = arguments
        (folded,), projections, *kept = kept
        pairs, kept = kept[: len(projections)], kept[len(projections) :]
        rows, upstream = view.inputs_matrix(x), view.outputs_matrix(upstream)
        dx = upstream @ transpose(folded)
        products = _Products(rows, dx, upstream, projections)
        matrix = view.kernel_matrix(kernel)
        d_numbers = form.gradients(products, matrix, pairs, kept)

        def d_kernel():
            d_folded = transpose(rows) @ upstream
            d_matrix = _kernel_gradient(d_folded, inputs, outputs, numbers)
            return view.from_kernel_matrix(d_matrix, kernel.shape)

        return view.from_inputs_matrix(dx, x), d_kernel, *d_numbers

    if training:
        return with_gradient(forward, backward)(x, kernel, *numbers)
    folded, *_ = fold(kernel, numbers)
    return view.product(x, view.from_kernel_matrix(folded, kernel.shape))


def _form(sizes, inputs, outputs, orthogonal):
    _, d, f = sizes
    if inputs is None:
        return _Outputs(outputs)
    if outputs is not None:
        return _Both(inputs, outputs)
    if orthogonal and d <= f:
        return _OrthogonalInputs(inputs)
    return _Inputs(inputs)


class _Products(NamedTuple):
    """What the gradients of the factors are made of.

    Args:
        rows: The inputs, `(rows, d)`.
        dx: Their gradient, `(rows, d)`.
        upstream: The gradient of the outputs, `(rows, f)`.
        projections: `rows pᵀ` for each pair `(p, q)` that is folded.
    """

    rows: Any
    dx: Any
    upstream: Any
    projections: tuple

    def pair_gradients(self, pairs):
        """Gradients of the pairs in `rows (W + Σ pᵀ q)`."""
        return [
            (
                contract(project(self.upstream, q), self.rows, p),
                contract(s, self.upstream, q),
            )
            for (p, q), s in zip(pairs, self.projections, strict=True)
        ]


class _Inputs:
    """`H W = W + leftᵀ (right W)`."""

    def __init__(self, blocks):
        self.blocks = blocks

    def pairs(self, matrix, *numbers):
        factors, kept = self.blocks.forward(*numbers)
        left, right = arrange(*factors)
        return ((left, matrix_rows(right, matrix)),), ((right,), kept)

    def gradients(self, products, matrix, pairs, kept):
        (right,), kept = kept
        ((d_left, d_rows),) = products.pair_gradients(pairs)
        d_right = matrix_rows_gradient(d_rows, matrix, right)
        return _number_gradients(self.blocks, kept, d_left, d_right)


class _OrthogonalInputs(_Inputs):
    """`H W` for an orthogonal `H = I + leftᵀ right`.

    Since `dx = dz Hᵀ`, the gradient at `z = x H` is `dz = dx H`, and nothing as
    wide as the outputs has to be gone through again:

        d left = (dz rightᵀ)ᵀ x = (dx (right Hᵀ)ᵀ)ᵀ x
        d right = (x leftᵀ)ᵀ dz = (x leftᵀ)ᵀ dx H
    """

    def gradients(self, products, matrix, pairs, kept):
        ((right,), kept), ((left, _),) = kept, pairs
        (s,) = products.projections
        turned = add_rows(right, inner(right, right), left)
        d_left = contract(project(products.dx, turned), products.rows, left)
        d_right = contract(s, products.dx, right)
        d_right = add_rows(d_right, inner(d_right, left), right)
        return _number_gradients(self.blocks, kept, d_left, d_right)


class _Outputs:
    """`W G = W + (W leftᵀ) right`."""

    def __init__(self, blocks):
        self.blocks = blocks

    def pairs(self, matrix, *numbers):
        factors, kept = self.blocks.forward(*numbers)
        left, right = arrange(*factors)
        return ((matrix_rows(left, transpose(matrix)), right),), ((left,), kept)

    def gradients(self, products, matrix, pairs, kept):
        (left,), kept = kept
        ((d_rows, d_right),) = products.pair_gradients(pairs)
        d_left = matrix_rows_gradient(d_rows, transpose(matrix), left)
        return _number_gradients(self.blocks, kept, d_left, d_right)


class _Both:
    """`H W G = W + leftᵀ (right W) + (H W mᵀ) t`, for `G = I + mᵀ t`."""

    def __init__(self, inputs, outputs):
        self.inputs = inputs
        self.outputs = outputs

    def pairs(self, matrix, *numbers):
        count = len(self.inputs.numbers)
        factors, kept_inputs = self.inputs.forward(*numbers[:count])
        left, right = arrange(*factors)
        factors, kept_outputs = self.outputs.forward(*numbers[count:])
        m, t = arrange(*factors)
        a = matrix_rows(right, matrix)
        c = matrix_rows(m, transpose(a))
        b = add_spread(matrix_rows(m, transpose(matrix)), c, left)
        pairs = (left, a), (b, t)
        if len(left.shape) == len(t.shape) == 2:
            # One product of twice the rows takes little more time than one of
            # them.
            pairs = ((concatenate([left, b]), concatenate([a, t])),)
        return pairs, ((left, right, m, a, c), kept_inputs, kept_outputs)

    def gradients(self, products, matrix, pairs, kept):
        (left, right, m, a, c), kept_inputs, kept_outputs = kept
        found = products.pair_gradients(pairs)
        if len(found) == 1:
            ((d_p, d_q),) = found
            k = left.shape[0]
            found = (d_p[:k], d_q[:k]), (d_p[k:], d_q[k:])
        (d_left, d_a), (d_b, d_t) = found
        d_c = project(d_b, left)
        d_left = d_left + contract(c, d_b, left)
        d_a = add_spread(d_a, transpose(d_c), m)
        d_m = matrix_rows_gradient(d_b, transpose(matrix), m)
        d_m = d_m + matrix_rows_gradient(d_c, transpose(a), m)
        d_right = matrix_rows_gradient(d_a, matrix, right)
        return (
            *_number_gradients(self.inputs, kept_inputs, d_left, d_right),
            *_number_gradients(self.outputs, kept_outputs, d_m, d_t),
        )


def _kernel_gradient(d_folded, inputs, outputs, numbers):
    """`Hᵀ d_folded Gᵀ`."""
    count = 0 if inputs is None else len(inputs.numbers)
    gradient = d_folded
    if outputs is not None:
        (left, right), _ = outputs.forward(*numbers[count:])
        gradient = multiply(gradient, right, left)
    if inputs is not None:
        factors, _ = inputs.forward(*numbers[:count])
        gradient = transpose(multiply(transpose(gradient), *factors))
    return gradient


def _number_gradients(blocks, kept, *d_factors):
    count = blocks.numbers[0].shape[0]
    return blocks.backward(kept, *arrange_gradients(count, *d_factors))


def add_outer(matrix, p, q):
    """`matrix + pᵀ q`, for factors of which `arrange` may have left one."""
    if len(p.shape) == 2:
        return add_spread(matrix, transpose(p), q)
    blocks, k, width = p.shape
    q = reshape(q, (blocks, k, -1))
    return matrix + reshape(ops.swapaxes(p, 1, 2) @ q, (blocks * width, -1))
