"""The product of inputs with a transformed kernel, without a weight gradient.

There are two ways to compute `x H W G`: transform the activations on both sides
of `x W` (`reflections.multiply`), or multiply by the folded kernel `H W G`. The
first reads and writes all of `x` and `y`, the second only `W`, which is cheaper
if activations have more rows than the kernel. The expensive part would be the
gradient of the folded kernel, a whole `xᵀ g`. It is not needed: for every
method and side, a folded kernel is `W + Σ pᵀ q` with pairs `p`, `q` of a few
rows. Their gradients are products of a few rows too.

Accelerators train in 16 bits, where memory traffic dominates. There the pairs
stay unfolded: `y = x W + Σ (x pᵀ) q`. A compiler adds them when it writes the
product, and no folded kernel is written, saved or rounded. On a GPU, XLA does
not do this for pairs of two sides, so these are folded in 16 bits too.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence

from keras import ops

from keras_ether.ops import reflections
from keras_ether.ops.backend import BACKEND
from keras_ether.ops.backend import concatenate
from keras_ether.ops.backend import dtype_name
from keras_ether.ops.backend import is_float32
from keras_ether.ops.backend import is_for_gpu
from keras_ether.ops.backend import transpose
from keras_ether.ops.backend import with_barrier
from keras_ether.ops.block_diagonal import add_spread
from keras_ether.ops.block_diagonal import arrange
from keras_ether.ops.block_diagonal import kernel_rows
from keras_ether.ops.custom_gradient import custom_gradient_applies
from keras_ether.ops.forms import computed
from keras_ether.ops.forms import fold
from keras_ether.ops.forms import pairs_of
from keras_ether.ops.forms import unfolded
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Factors
from keras_ether.types import Tensor

# If the pairs have more rows than this, a folded kernel is cheaper.
MAX_ROWS_UNFOLDED = 8


def is_cheaper(
    x: Tensor,
    kernel: Tensor,
    view: MatrixView,
    sides: Sequence[Factors | None],
    training: bool,
) -> bool:
    """Whether `folded_product` is cheaper, from static shapes.

    It is not for blocks without thin factors, nor for kernels that are no
    matrix, such as experts. The folded kernel must take no more memory than the
    activations. The unfolded form is cheaper only if the wide side is
    transformed. With XLA it is not cheaper for one side with one row, whose
    products become sums and fuse. If a custom gradient can't be used,
    transformed activations need no weight gradient either.

    The arguments are as for `folded_product`; `sides` are the factors of the
    inputs and of the outputs.
    """
    if dtype_name(x) != dtype_name(kernel):
        return False
    if not all(factors is None or factors[1] is not None for factors in sides):
        return False
    if not view.is_one_matrix or x.shape[-1] is None:
        return False
    if training and not custom_gradient_applies(x):
        return False
    _, d, f = view.sizes(kernel.shape)
    if _is_unfolded(x, *sides):
        wide = sides[_wide_side(d, f, *sides)]
        fuses = BACKEND == "jax" and None in sides
        if wide is None or (fuses and _count_rows(wide[0]) == 1):
            return False
    if not all(isinstance(size, int) for size in x.shape):
        # `None`, or a symbol while JAX or PyTorch exports a model. Assume many
        # rows: only generation has few.
        return training
    return math.prod(x.shape) // d * (d + f) >= d * f


def folded_product(
    x: Tensor,
    kernel: Tensor,
    view: MatrixView,
    inputs: Factors | None,
    outputs: Factors | None,
    bias: Tensor | None,
    training: bool,
    place: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """`x H W G + bias`, with a folded kernel or with unfolded pairs.

    Args:
        x: Inputs of the layer.
        kernel: Kernel of the layer, without experts.
        view: `MatrixView` of the kernel.
        inputs: Factors `(left, right)` of `H`, or `None`.
        outputs: Factors `(left, right)` of `G`, or `None`.
        bias: Bias of the layer, or `None`.
        training: Whether a gradient will be asked for. Values and gradients are
            the same. With `False`, only plain operations are used, which every
            exporter can read.
        place: Function that places the rows of a pair on devices, see
            `keras_ether.ops.placement`. By default they are not placed.

    Returns:
        The layer's outputs, before the activation.
    """
    if _is_unfolded(x, inputs, outputs):
        return wide_side_unfolded(
            x, kernel, view, inputs, outputs, bias, training, place
        )
    inputs, outputs = (side and _cast(side, x) for side in (inputs, outputs))
    matrix = view.kernel_matrix(kernel)
    rest = [place(rows) for rows in low_rank_term(matrix, inputs, outputs)]
    if bias is not None:
        rest.append(bias)
    return computed(fold, view, training, x, kernel, *rest)


def wide_side_unfolded(
    x: Tensor,
    kernel: Tensor,
    view: MatrixView,
    inputs: Factors | None,
    outputs: Factors | None,
    bias: Tensor | None,
    training: bool,
    place: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """The product with the wide side's pair unfolded.

    Passes over the wide side are expensive. Its pair reads the inputs and the
    upstream gradient once more each, and writes nothing as wide. On the narrow
    side activations are transformed.
    """
    matrix = view.kernel_matrix(kernel)
    d, f = matrix.shape
    wide = _wide_side(d, f, inputs, outputs)
    if wide == 1 and inputs is not None:
        x = view.map_inputs(_multiply_by(inputs, training), x)
    wide_factors = (inputs, outputs)[wide]
    # Here `is_cheaper` holds only if the wide side is transformed.
    assert wide_factors is not None
    factors = _cast(wide_factors, x)
    pair = (None, factors) if wide else (factors, None)
    rest = [place(with_barrier(rows)) for rows in low_rank_term(matrix, *pair)]
    form = unfolded if _count_rows(rest[0]) <= MAX_ROWS_UNFOLDED else fold
    narrow = None if wide else outputs
    if narrow is None and bias is not None:
        rest.append(bias)
    y = computed(form, view, training, x, kernel, *rest)
    if narrow is None:
        return y
    y = view.map_outputs(_multiply_by(narrow, training), y)
    return y if bias is None else y + bias


def _wide_side(
    d: int, f: int, inputs: Factors | None, outputs: Factors | None
) -> int:
    """0 for inputs or 1 for outputs; the last transformed side if square.

    (Transformed inputs need not be written.)
    """
    return int(f > d or (f == d and outputs is not None))


def _is_unfolded(
    x: Tensor, inputs: Factors | None, outputs: Factors | None
) -> bool:
    one_sided = inputs is None or outputs is None
    return not is_float32(x) and (one_sided or not is_for_gpu())


def _multiply_by(
    factors: Factors, training: bool
) -> Callable[[Tensor], Tensor]:
    return lambda rows: reflections.multiply(rows, *factors, training=training)


def _cast(factors: Factors, x: Tensor) -> Factors:
    left, right = factors
    return ops.cast(left, x.dtype), ops.cast(right, x.dtype)


def _count_rows(factor: Tensor) -> int:
    return math.prod(factor.shape[:-1])


def low_rank_term(
    kernel: Tensor, inputs: Factors | None, outputs: Factors | None
) -> tuple[Tensor, ...]:
    """`p` and `q`, once or twice, such that `H W G = W + Σ pᵀ q`.

    `H = I + Lᵀ R` adds the pair `(L, R W)`, `G = I + Mᵀ T` adds the pair `((H W
    Mᵀ)ᵀ, T)`. Automatic differentiation gives its derivative: all arrays except
    the kernel have a few rows.

    Args:
        kernel: Matrix of shape `(d, f)`.
        inputs: Factors `(left, right)` of `H`, or `None`.
        outputs: Factors `(left, right)` of `G`, or `None`.

    Returns:
        `(p, q)` or `(p, q, p, q)`, each of as many rows as the blocks have
        factors, in the form that `block_diagonal.arrange` gives.
    """
    term: tuple[Tensor, ...] = ()
    if inputs is not None:
        left, right = inputs
        term = arrange(left), kernel_rows(right, kernel)
    if outputs is not None:
        m, t = outputs
        rows = kernel_rows(m, transpose(kernel))
        for p, q in pairs_of(term):
            rows = add_spread(rows, kernel_rows(m, transpose(q)), p)
        term += rows, arrange(t)
    if len(term) == 4 and all(len(factor.shape) == 2 for factor in term):
        # One pair of twice the rows takes little longer than one pair.
        return concatenate(term[::2]), concatenate(term[1::2])
    return term
