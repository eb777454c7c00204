"""A convolution's kernel as matrices over its channels."""

from collections.abc import Callable
from dataclasses import dataclass

from keras import ops

from keras_ether.types import Sizes
from keras_ether.types import Tensor


@dataclass(frozen=True)
class ConvView:
    """The input, the kernel and the output of a convolution, seen as matrices.

    At every position of its window a kernel holds one `(d, f)` matrix from
    input channels to filters. All of these are transformed in the same way.
    Each group of a grouped convolution reads only its own channels: groups are
    the experts of `keras_ether.ops.matrix_view.MatrixView`, each with its own
    blocks.

    Args:
        channels_first: Whether the channel axis comes before the spatial axes
            of input and output. Defaults to `False`.
        transposed: Whether the kernel's last axes are `(filters, channels)`, as
            in a transposed convolution, instead of `(channels, filters)`.
            Defaults to `False`.
        groups: Number of groups. Defaults to 1.

    Example:

    >>> ConvView(groups=2).sizes((3, 3, 8, 32))
    (2, 8, 16)
    """

    channels_first: bool = False
    transposed: bool = False
    groups: int = 1

    def sizes(self, kernel_shape: tuple[int, ...]) -> Sizes:
        """Returns `(e, d, f)`: groups, and the channels and filters of each."""
        inputs, outputs = kernel_shape[-2:]
        if self.transposed:
            inputs, outputs = outputs, inputs
        return self.groups, inputs, outputs // self.groups

    def neurons(self, kernel: Tensor) -> Tensor:
        """The kernel as `(e, positions · d, f)`: each filter is a column."""
        experts, _, outputs = self.sizes(kernel.shape)
        if self.transposed:
            kernel = ops.swapaxes(kernel, -1, -2)
        kernel = ops.reshape(kernel, (-1, experts, outputs))
        return ops.swapaxes(kernel, 0, 1)

    def map_inputs(
        self, function: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Applies `function` to the inputs with `e · d` as their last axis."""
        if not self.channels_first:
            return function(x)
        return ops.moveaxis(function(ops.moveaxis(x, 1, -1)), -1, 1)

    # To the outputs, with `e · f` as their last axis.
    map_outputs = map_inputs

    def map_kernel_inputs(
        self, function: Callable[[Tensor], Tensor], kernel: Tensor
    ) -> Tensor:
        """Applies `function` to the kernel with `e · d` as its last axis."""
        if self.transposed:
            return function(kernel)
        shape = tuple(kernel.shape)
        by_group = (*shape[:-1], self.groups, shape[-1] // self.groups)
        kernel = ops.swapaxes(ops.reshape(kernel, by_group), -1, -3)
        *leading, experts, inputs = swapped = tuple(kernel.shape)
        kernel = ops.reshape(kernel, (*leading, experts * inputs))
        kernel = ops.reshape(function(kernel), swapped)
        return ops.reshape(ops.swapaxes(kernel, -1, -3), shape)

    def map_kernel_outputs(
        self, function: Callable[[Tensor], Tensor], kernel: Tensor
    ) -> Tensor:
        """Applies `function` to the kernel with `e · f` as its last axis."""
        if not self.transposed:
            return function(kernel)
        return ops.swapaxes(function(ops.swapaxes(kernel, -1, -2)), -1, -2)
