"""A kernel of any shape as a `(d, f)` matrix, from its einsum equation.

An `EinsumDense` may contract several axes, give several, and carry axes that
the input, the kernel and the output share (a bank of experts). Flattened in the
kernel's own order, they are the inputs `d`, the outputs `f` and the experts `e`
of a stack of matrices. A reflection acts on the rows of a tensor whose last
axis is `e · d` or `e · f`: experts only add blocks.
"""

import math
from dataclasses import dataclass

from keras import ops


@dataclass(frozen=True)
class MatrixView:
    """The input, the kernel and the output of a linear layer, seen as matrices.

    Args:
        equation: Einsum equation of the layer, such as `"abc,cde->abde"`. An
            ellipsis may stand for leading or trailing axes.

    Example:

    >>> view = MatrixView("bqnh,nhm->bqm")
    >>> view.sizes((12, 32, 384))
    (1, 384, 384)
    """

    equation: str

    def __post_init__(self):
        operands, _, output = self.equation.replace(" ", "").partition("->")
        inputs, _, kernel = operands.partition(",")
        shared = [a for a in kernel if a in inputs and a in output]
        contracted = [a for a in kernel if a in inputs and a not in output]
        given = [a for a in kernel if a not in inputs and a in output]
        for name, value in (
            ("inputs", inputs),
            ("kernel", kernel),
            ("outputs", output),
            ("experts", "".join(shared)),
            ("rows", "".join(contracted)),
            ("columns", "".join(given)),
        ):
            object.__setattr__(self, name, value)

    def sizes(self, kernel_shape):
        """Returns `(e, d, f)`: experts, inputs and outputs of the kernel."""
        size_of = dict(zip(self.kernel, kernel_shape, strict=True))
        return tuple(
            math.prod(size_of[axis] for axis in axes)
            for axes in (self.experts, self.rows, self.columns)
        )

    def map_inputs(self, function, x):
        """Applies `function` to the inputs with `e · d` as their last axis."""
        return _map_last(function, x, self.inputs, self.experts + self.rows)

    def map_outputs(self, function, y):
        """Applies `function` to the outputs with `e · f` as their last axis."""
        return _map_last(function, y, self.outputs, self.experts + self.columns)

    def map_kernel_inputs(self, function, kernel):
        """Applies `function` to the kernel with `e · d` as its last axis."""
        return _map_last(
            function, kernel, self.kernel, self.experts + self.rows
        )

    def map_kernel_outputs(self, function, kernel):
        """Applies `function` to the kernel with `e · f` as its last axis."""
        return _map_last(
            function, kernel, self.kernel, self.experts + self.columns
        )


def _map_last(function, x, labels, merged):
    """Applies `function` to `x` with the axes `merged` made one, the last."""
    ndim = len(x.shape)
    axes = _positions(labels, merged, ndim)
    last = list(range(ndim - len(axes), ndim))
    if axes != last:
        x = ops.moveaxis(x, axes, last)
    shape = ops.shape(x)
    if len(axes) > 1:
        size = math.prod(x.shape[axis] for axis in last)
        x = ops.reshape(x, (*shape[: last[0]], size))
    x = function(x)
    if len(axes) > 1:
        x = ops.reshape(x, shape)
    if axes != last:
        x = ops.moveaxis(x, last, axes)
    return x


def _positions(labels, wanted, ndim):
    """Axes of a tensor of `ndim` axes that the labels `wanted` name."""
    left, ellipsis, right = labels.partition("...")
    position = {label: axis for axis, label in enumerate(left)}
    if ellipsis:
        start = ndim - len(right)
        position |= {label: start + axis for axis, label in enumerate(right)}
    return [position[label] for label in wanted]
