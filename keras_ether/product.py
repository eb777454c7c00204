"""The product of inputs with a transformed kernel, without a weight gradient.

`x H W G` can be had by transforming the activations on either side of `x W`
(`reflections.multiply`), or by one product with the folded kernel `H W G`. The
second touches `W` where the first touches all of `x` and `y`, and is the
cheaper one wherever activations have more rows than the kernel. What is dear in
it is the gradient of the folded kernel, a whole `xᵀ g`. It is not needed: the
gradients of the factors follow from products of a few rows.
"""

import functools
import math

from keras import ops

from keras_ether.custom_gradient import with_gradient
from keras_ether.quick_ops import add_to
from keras_ether.quick_ops import batch_matmul
from keras_ether.quick_ops import concatenate
from keras_ether.quick_ops import is_float32
from keras_ether.quick_ops import reshape
from keras_ether.quick_ops import transpose
from keras_ether.reflections import multiply
from keras_ether.thin_factors import add_spread
from keras_ether.thin_factors import arrange
from keras_ether.thin_factors import arrange_gradient
from keras_ether.thin_factors import contract
from keras_ether.thin_factors import kernel_rows
from keras_ether.thin_factors import kernel_rows_gradient
from keras_ether.thin_factors import project


def pays(x, kernel, view, sides, training):
    """Whether a folded kernel is the cheaper form, from static shapes.

    Not in 16 bits, where the sum of a kernel and a small deviation rounds the
    deviation away; not for blocks without thin factors, nor for kernels that
    are no matrix, such as a bank of experts; and only where the folded kernel
    takes no more memory than the activations beside it.

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
    if not view.is_one_matrix or x.shape[-1] is None:
        return False
    _, d, f = view.sizes(kernel.shape)
    if not all(isinstance(size, int) for size in x.shape):
        # `None`, or a symbol while JAX or PyTorch exports a model. A batch has
        # many rows; the calls that have few are made to generate.
        return training
    return math.prod(x.shape) // d * (d + f) >= d * f


def folded_product(
    x, kernel, view, inputs, outputs, bias, orthogonal, training
):
    """`x H W G + bias` by a folded kernel.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer, without experts.
        view: `MatrixView` of the kernel.
        inputs: `Blocks` of `H`, or `None`.
        outputs: `Blocks` of `G`, or `None`.
        bias: Bias of the layer, or `None`.
        orthogonal: Whether every block is orthogonal.
        training: Whether a gradient will be asked for. Values and gradients are
            the same either way; with `False`, plain operations are what every
            exporter can read.

    Returns:
        The layer's outputs, before the activation.
    """
    form = _form(view.sizes(kernel.shape), inputs, outputs, orthogonal)
    numbers = [n for side in (inputs, outputs) if side for n in side.numbers]
    count = len(numbers)

    def fold(kernel, numbers):
        matrix = view.kernel_matrix(kernel)
        pairs, kept = form.pairs(matrix, *numbers)
        for p, q in pairs:
            matrix = add_outer(matrix, p, q)
        return view.from_kernel_matrix(matrix, kernel.shape), pairs, kept

    def layer(x, folded, *biases):
        y = view.product(x, folded)
        for bias in biases:
            y = add_to(y, bias)
        return y

    def forward(x, kernel, *rest):
        folded, pairs, kept = fold(kernel, rest[:count])
        rows = view.inputs_matrix(x)
        projections = tuple(project(rows, p) for p, _ in pairs)
        y = layer(x, folded, *rest[count:])
        return y, ((folded,), projections, *pairs, *kept)

    def backward(arguments, kept, upstream):
        x, kernel, *rest = arguments
        (folded,), projections, *kept = kept
        pairs, kept = kept[: len(projections)], kept[len(projections) :]
        products = _Products(
            view.inputs_matrix(x),
            view.outputs_matrix(upstream),
            view.kernel_matrix(folded),
            projections,
        )
        matrix = view.kernel_matrix(kernel)
        d_numbers = form.gradients(products, matrix, pairs, kept)

        def dx():
            return view.from_inputs_matrix(products.dx, x)

        def d_kernel():
            d_matrix = _kernel_gradient(
                products.d_folded, inputs, outputs, rest[:count]
            )
            return view.from_kernel_matrix(d_matrix, kernel.shape)

        d_biases = [
            functools.partial(_bias_gradient, upstream, bias)
            for bias in rest[count:]
        ]
        return dx, d_kernel, *d_numbers, *d_biases

    biases = () if bias is None else (bias,)
    if training:
        function = with_gradient(forward, backward)
        return function(x, kernel, *numbers, *biases)
    folded, *_ = fold(kernel, numbers)
    return layer(x, folded, *biases)


def _form(sizes, inputs, outputs, orthogonal):
    _, d, f = sizes
    if inputs is None:
        return _Outputs(outputs)
    if outputs is not None:
        return _Both(inputs, outputs)
    if orthogonal and d < f:
        return _NarrowInputs(inputs)
    return _Inputs(inputs)


class _Products:
    """What the gradients of the factors are made of.

    Args:
        rows: The inputs, `(rows, d)`.
        upstream: The gradient of the outputs, `(rows, f)`.
        folded: The folded kernel, `(d, f)`.
        projections: `rows pᵀ` for each pair `(p, q)` that is folded.
    """

    def __init__(self, rows, upstream, folded, projections):
        self.rows = rows
        self.upstream = upstream
        self.folded = folded
        self.projections = projections

    @functools.cached_property
    def dx(self):
        """The gradient of the inputs, `(rows, d)`."""
        return self.upstream @ transpose(self.folded)

    @property
    def d_folded(self):
        """The gradient of the folded kernel, `(d, f)`."""
        return transpose(self.rows) @ self.upstream

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
        (left, right), kept = self.blocks.forward(*numbers)
        pairs = ((arrange(left), kernel_rows(right, matrix)),)
        return pairs, ((left, right), kept)

    def gradients(self, products, matrix, pairs, kept):
        (left, right), kept = kept
        ((d_left, d_rows),) = products.pair_gradients(pairs)
        d_left = arrange_gradient(d_left, left)
        d_right = kernel_rows_gradient(d_rows, matrix, right)
        return self.blocks.backward(kept, d_left, d_right)


class _NarrowInputs(_Inputs):
    """`H W` for an orthogonal `H = I + leftᵀ right` and a `W` wider than high.

    Since `dx = dz Hᵀ`, the gradient at `z = x H` is `dz = dx H`, and nothing as
    wide as the outputs has to be gone through again:

        d left = (dz rightᵀ)ᵀ x = (dx (right Hᵀ)ᵀ)ᵀ x
        d right = (x leftᵀ)ᵀ dz = (x leftᵀ)ᵀ dx H
    """

    def gradients(self, products, matrix, pairs, kept):
        ((left, right), kept), ((p, _),) = kept, pairs
        (s,) = products.projections
        turned = right + right @ transpose(right) @ left
        t = project(products.dx, arrange(turned))
        d_left = arrange_gradient(contract(t, products.rows, p), left)
        d_right = arrange_gradient(contract(s, products.dx, p), right)
        d_right = d_right + d_right @ transpose(left) @ right
        return self.blocks.backward(kept, d_left, d_right)


class _Outputs:
    """`W G = W + (W leftᵀ) right`."""

    def __init__(self, blocks):
        self.blocks = blocks

    def pairs(self, matrix, *numbers):
        (left, right), kept = self.blocks.forward(*numbers)
        rows = kernel_rows(left, transpose(matrix))
        return ((rows, arrange(right)),), ((left, right), kept)

    def gradients(self, products, matrix, pairs, kept):
        (left, right), kept = kept
        ((d_rows, d_right),) = products.pair_gradients(pairs)
        d_left = kernel_rows_gradient(d_rows, transpose(matrix), left)
        d_right = arrange_gradient(d_right, right)
        return self.blocks.backward(kept, d_left, d_right)


class _Both:
    """`H W G = W + leftᵀ (right W) + (H W mᵀ) t`, for `G = I + mᵀ t`."""

    def __init__(self, inputs, outputs):
        self.inputs = inputs
        self.outputs = outputs

    def pairs(self, matrix, *numbers):
        count = len(self.inputs.numbers)
        (left, right), kept_inputs = self.inputs.forward(*numbers[:count])
        (m, t), kept_outputs = self.outputs.forward(*numbers[count:])
        p = arrange(left)
        a = kernel_rows(right, matrix)
        c = kernel_rows(m, transpose(a))
        b = kernel_rows(m, transpose(matrix))
        pairs = (p, a), (add_spread(b, c, p), arrange(t))
        if _is_one_product(*pairs):
            pairs = (tuple(map(concatenate, zip(*pairs, strict=True))),)
        kept = (left, right, m, t, p, a, c)
        return pairs, (kept, kept_inputs, kept_outputs)

    def gradients(self, products, matrix, pairs, kept):
        (left, right, m, t, p, a, c), kept_inputs, kept_outputs = kept
        found = products.pair_gradients(pairs)
        if len(found) == 1:
            ((d_first, d_second),) = found
            k = p.shape[0]
            found = (d_first[:k], d_second[:k]), (d_first[k:], d_second[k:])
        (d_p, d_a), (d_b, d_t) = found
        d_c = project(d_b, p)
        d_p = d_p + contract(c, d_b, p)
        d_a = add_spread(d_a, transpose(d_c), arrange(m))
        d_m = kernel_rows_gradient(d_b, transpose(matrix), m)
        d_m = d_m + kernel_rows_gradient(d_c, transpose(a), m)
        d_right = kernel_rows_gradient(d_a, matrix, right)
        d_left, d_t = arrange_gradient(d_p, left), arrange_gradient(d_t, t)
        return (
            *self.inputs.backward(kept_inputs, d_left, d_right),
            *self.outputs.backward(kept_outputs, d_m, d_t),
        )


def _is_one_product(*pairs):
    """Whether products with two pairs are one with twice the rows.

    That takes little more time than one of them.
    """
    return all(len(factor.shape) == 2 for pair in pairs for factor in pair)


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
