"""A kernel of any shape as a `(d, f)` matrix, from its einsum equation.

An `EinsumDense` may contract several axes, add several, and have axes that the
input, the kernel and the output share (experts). Flattened in the kernel's own
order, these axes are the inputs `d`, the outputs `f` and the experts `e` of a
stack of matrices. A reflection acts on the rows of a tensor whose last axis is
`e · d` or `e · f`: experts only add blocks.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

from keras import ops

from keras_ether.ops.backend import dense_product
from keras_ether.ops.backend import reshape
from keras_ether.types import Sizes
from keras_ether.types import Tensor


@dataclass(frozen=True)
class MatrixView:
    """The input, the kernel and the output of a linear layer, seen as matrices.

    Args:
        equation: Einsum equation of the layer, such as `"abc,cde->abde"`. An
            ellipsis may denote leading or trailing axes.
        is_matmul: Whether the layer computes by `matmul` and not by `einsum`,
            which may differ in the last bit. Defaults to `False`.

    Example:

    >>> view = MatrixView("bqnh,nhm->bqm")
    >>> view.sizes((12, 32, 384))
    (1, 384, 384)
    """

    equation: str
    is_matmul: bool = False
    # The axis labels of each operand, and of the kernel's experts, rows,
    # columns.
    inputs: str = field(init=False, repr=False, compare=False)
    kernel: str = field(init=False, repr=False, compare=False)
    outputs: str = field(init=False, repr=False, compare=False)
    experts: str = field(init=False, repr=False, compare=False)
    rows: str = field(init=False, repr=False, compare=False)
    columns: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        operands, _, output = self.equation.replace(" ", "").partition("->")
        inputs, _, kernel = operands.partition(",")
        # In "abc,cde->abde" `c` are the rows and `de` the columns. Axes in all
        # three operands are experts.
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

    def sizes(self, kernel_shape: tuple[int, ...]) -> Sizes:
        """Returns `(e, d, f)`: experts, inputs and outputs of the kernel."""
        size_of = dict(zip(self.kernel, kernel_shape, strict=True))
        e, d, f = (
            math.prod(size_of[axis] for axis in axes)
            for axes in (self.experts, self.rows, self.columns)
        )
        return e, d, f

    @functools.cached_property
    def is_one_matrix(self) -> bool:
        """Whether the layer multiplies rows of its inputs by one matrix.

        True without experts, if the other axes keep their order in the output.
        """
        before = [a for a in self.inputs if a not in self.rows]
        after = [a for a in self.outputs if a not in self.columns]
        return not self.experts and before == after

    def product(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The layer's own product of inputs and kernel."""
        if self.is_matmul:
            # On PyTorch, Keras computes a float64 product in float32.
            return ops.cast(dense_product(x, kernel), x.dtype)
        return ops.einsum(self.equation, x, kernel)

    def inputs_matrix(self, x: Tensor) -> Tensor:
        """The inputs as rows of `d`, for a kernel without experts."""
        return _matrix(x, self.inputs, self.rows)

    def from_inputs_matrix(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `inputs_matrix`, in the shape of `like`."""
        return _from_matrix(rows, self.inputs, self.rows, like)

    def outputs_matrix(self, y: Tensor) -> Tensor:
        """The outputs as rows of `f`, for a kernel without experts."""
        return _matrix(y, self.outputs, self.columns)

    def from_outputs_matrix(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `outputs_matrix`, in the shape of `like`."""
        return _from_matrix(rows, self.outputs, self.columns, like)

    def kernel_matrix(self, kernel: Tensor) -> Tensor:
        """A kernel without experts as a `(d, f)` matrix."""
        if not self._is_in_order:
            kernel = _transpose(kernel, self._matrix_axes)
        if len(self.kernel) == 2:
            return kernel
        size = math.prod(kernel.shape[: len(self.rows)])
        return reshape(kernel, (size, -1))

    def from_kernel_matrix(
        self, matrix: Tensor, kernel_shape: tuple[int, ...]
    ) -> Tensor:
        """The inverse of `kernel_matrix`."""
        if self._is_in_order:
            return reshape(matrix, kernel_shape)
        axes = self._matrix_axes
        if len(axes) > 2:
            matrix = reshape(matrix, [kernel_shape[axis] for axis in axes])
        return _transpose_back(matrix, axes)

    @property
    def _is_in_order(self) -> bool:
        """Whether the axes of the kernel are those of its matrix, in order."""
        return self.kernel == self.rows + self.columns

    @property
    def _matrix_axes(self) -> list[int]:
        return [self.kernel.index(a) for a in self.rows + self.columns]

    def neurons(self, kernel: Tensor) -> Tensor:
        """The kernel as `(e, d, f)`: each output's weights are a column."""
        labels = self.experts + self.rows + self.columns
        axes = [self.kernel.index(label) for label in labels]
        return ops.reshape(_transpose(kernel, axes), self.sizes(kernel.shape))

    def map_inputs(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Applies `function` to the inputs with `e · d` as their last axis."""
        return _map_last(function, x, self.inputs, self.experts + self.rows)

    def map_outputs(
        self, function: Callable[[Tensor], Tensor], y: Tensor
    ) -> Tensor:
        """Applies `function` to the outputs with `e · f` as their last axis."""
        return _map_last(function, y, self.outputs, self.experts + self.columns)

    def map_kernel_inputs(
        self, function: Callable[[Tensor], Tensor], kernel: Tensor
    ) -> Tensor:
        """Applies `function` to the kernel with `e · d` as its last axis."""
        return _map_last(
            function, kernel, self.kernel, self.experts + self.rows
        )

    def map_kernel_outputs(
        self, function: Callable[[Tensor], Tensor], kernel: Tensor
    ) -> Tensor:
        """Applies `function` to the kernel with `e · f` as its last axis."""
        return _map_last(
            function, kernel, self.kernel, self.experts + self.columns
        )


def _map_last(
    function: Callable[[Tensor], Tensor], x: Tensor, labels: str, merged: str
) -> Tensor:
    """Applies `function` to `x` with the axes `merged` merged into the last."""
    axes = _axes_to_last(x, labels, merged)
    if len(merged) == 1:
        return _transpose_back(function(_transpose(x, axes)), axes)
    shape = ops.shape(x)
    split = [shape[axis] for axis in axes]
    x = _transpose(x, axes)
    leading = len(axes) - len(merged)
    size = math.prod(x.shape[leading:])
    x = function(reshape(x, (*split[:leading], size)))
    return _transpose_back(reshape(x, split), axes)


def _matrix(x: Tensor, labels: str, merged: str) -> Tensor:
    """`x` as a matrix, with the axes of the labels `merged` as its columns."""
    if not labels.endswith(merged):
        x = _transpose(x, _axes_to_last(x, labels, merged))
    if len(x.shape) == 2 and len(merged) == 1:
        return x
    return reshape(x, (-1, math.prod(x.shape[-len(merged) :])))


def _from_matrix(
    rows: Tensor, labels: str, merged: str, like: Tensor
) -> Tensor:
    """The inverse of `_matrix`, in the shape of `like`."""
    shape = ops.shape(like)
    if labels.endswith(merged):
        return reshape(rows, shape)
    axes = _axes_to_last(like, labels, merged)
    return _transpose_back(reshape(rows, [shape[a] for a in axes]), axes)


def _axes_to_last(x: Tensor, labels: str, wanted: str) -> list[int]:
    """All axes of `x`, with the axes of the labels `wanted` at the end."""
    ndim = len(x.shape)
    left, _, right = labels.partition("...")
    axis_of = dict(zip(left, range(ndim), strict=False))
    # Without an ellipsis, `right` is empty.
    axis_of |= dict(zip(right, range(ndim - len(right), ndim), strict=True))
    last = [axis_of[label] for label in wanted]
    return [axis for axis in range(ndim) if axis not in last] + last


def _transpose(x: Tensor, axes: list[int]) -> Tensor:
    return x if axes == sorted(axes) else ops.transpose(x, axes)


def _transpose_back(x: Tensor, axes: list[int]) -> Tensor:
    """The inverse of `_transpose`."""
    return _transpose(x, [axes.index(axis) for axis in range(len(axes))])
