"""The layer that owns one kernel's vectors."""

import random

import keras
import numpy as np
from keras import ops

from keras_ether import methods
from keras_ether import plain_file
from keras_ether import reflections
from keras_ether import values
from keras_ether.custom_gradient import is_gradient_wanted
from keras_ether.quick_ops import snapshot
from keras_ether.quick_ops import tensor
from keras_ether.switch import Switch


class Adapter(keras.layers.Layer):
    """The trained transformation of one kernel, `H W G`.

    It is a sub-layer of the layer whose kernel it transforms, so Keras tracks,
    saves and places the vectors while that layer's own variables keep their
    plain format. It is not called: the outer layer asks it to transform inputs,
    outputs or the kernel.

    Args:
        method: String, name of a registered method. Defaults to `"ether"`.
        rank_blocks: Integer, the number of diagonal blocks `n`. Defaults to 4.
        side: `"input"`, `"output"`, `"both"`, or `None` for the method's own.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        name: String, name of the layer. Defaults to `"ether"`.

    Raises:
        ValueError: if an argument is not one of the above.
    """

    def __init__(
        self,
        method: str = "ether",
        rank_blocks: int = 4,
        side: str | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        name: str = "ether",
    ):
        rank_blocks, dropout, seed = check_arguments(
            method, rank_blocks, side, dropout, seed
        )
        # Float32 under any dtype policy: in 16 bits a vector's small steps are
        # lost.
        super().__init__(name=name, dtype="float32")
        self.method = method
        self.rank_blocks = rank_blocks
        self.side = side or methods.get(method).side
        self.dropout = dropout
        self.seed = random.randrange(2**31 - 1) if seed is None else seed
        self.seed_generator = (
            keras.random.SeedGenerator(self.seed) if dropout else None
        )
        self.switch = Switch()
        # What the outer layer hands over while a file is written or read, see
        # `keras_ether.plain_file`.
        self.base_fingerprint = None
        self.loading = None

    def build(self, view, kernel_shape):
        self.view = view
        self.kernel_shape = tuple(kernel_shape)
        experts, inputs, outputs = view.sizes(kernel_shape)
        self.blocks = experts * self.rank_blocks
        self.widths = {
            side: size // self.rank_blocks
            for side, size in (("input", inputs), ("output", outputs))
            if self.transforms(side)
        }
        for name, value in self._start().items():
            setattr(self, name, self._add_vector(name, value))
        # How far the blocks act, `I + strength (block − I)`: 1, or 0 while
        # `keras_ether.disabled` has the base compute. A variable, so that
        # compiled functions read it.
        self.strength = self.add_weight(
            name="strength",
            shape=(),
            initializer="ones",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def _add_vector(self, name, value):
        try:
            return self.add_weight(
                name=name,
                shape=value.shape,
                initializer=lambda shape, dtype: ops.array(value, dtype),
                autocast=False,
            )
        except ValueError as error:
            if keras.distribution.distribution() is None:
                raise
            raise ValueError(
                f"The distribution can't place '{self.path}/{name}', the "
                f"vectors of a kernel, of shape {value.shape}: {error} Rules "
                "of a layout map for kernels should end in 'kernel', and one "
                "for vectors should be '.*/ether/.*'; without one they are "
                "replicated."
            ) from error

    def _start(self):
        method = methods.get(self.method)
        rng = np.random.default_rng(self.seed)
        return {
            f"{side}_{name}": value
            for side, width in self.widths.items()
            for name, value in zip(
                method.weights,
                method.start(self.blocks, width, rng),
                strict=True,
            )
        }

    def restart(self):
        """Puts the vectors back to their start."""
        for name, value in self._start().items():
            getattr(self, name).assign(value)

    @property
    def vectors(self) -> dict:
        """The trained variables by name, such as `"input_u"`."""
        return {
            f"{side}_{name}": getattr(self, f"{side}_{name}")
            for side in self.widths
            for name in methods.get(self.method).weights
        }

    def transforms(self, side: str) -> bool:
        """Whether `"input"` or `"output"` is transformed."""
        return self.side in (side, "both")

    @property
    def orthogonal(self) -> bool:
        """Whether every block is orthogonal."""
        return methods.get(self.method).orthogonal

    @property
    def is_switched_off(self) -> bool:
        """Whether the base computes now. Compiled functions can't ask this."""
        return not ops.convert_to_numpy(self.strength)

    def switched_off(self):
        """A context in which every call computes with the base kernel."""
        return self.switch.held_at_zero(self.strength)

    def draw_kept(self, training=False) -> dict:
        """Draws which blocks dropout keeps in one call, by side.

        Args:
            training: Whether the call is one of training; it may be a tensor.

        Returns:
            Dictionary from `"input"` and `"output"` to a boolean tensor of
            shape `(blocks, 1, 1)`, empty where dropout has nothing to do.
        """
        if not self.dropout or training is False:
            return {}
        kept = {}
        for side in self.widths:
            drawn = keras.random.uniform(
                (self.blocks, 1, 1), seed=self.seed_generator
            )
            kept[side] = drawn >= self.dropout
            if training is not True:
                kept[side] = ops.logical_or(
                    kept[side], ops.logical_not(training)
                )
        return kept

    def factors(self, side: str, kept: dict | None = None):
        """The factors of one side's blocks, see `keras_ether.reflections`.

        Args:
            side: `"input"` or `"output"`.
            kept: What `draw_kept` has drawn for this call, or `None` for all
                blocks. Defaults to `None`.

        Returns:
            `(left, right)`, or `None` for a side that is not transformed.
        """
        if not self.transforms(side):
            return None
        method = methods.get(self.method)
        left, right = method.factors(
            *(tensor(getattr(self, f"{side}_{n}")) for n in method.weights)
        )
        left = left * snapshot(self.strength)
        if kept:
            left = left * ops.cast(kept[side], left.dtype)
        return left, right

    def transform_inputs(self, x, factors, training=False):
        """`x H`, or `x` where `factors` is `None`."""
        return self._transform(x, factors, self.view.map_inputs, training)

    def transform_outputs(self, y, factors, training=False):
        """`y G`, or `y` where `factors` is `None`."""
        return self._transform(y, factors, self.view.map_outputs, training)

    def _transform(self, x, factors, map_axis, training):
        if factors is None:
            return x
        return map_axis(
            lambda rows: reflections.multiply(
                rows, *factors, training=is_gradient_wanted(training)
            ),
            x,
        )

    def fold(self, kernel, kept: dict | None = None):
        """`H W G`, computed in float32, in the dtype of the kernel."""
        return self._fold(kernel, inverse=False, kept=kept)

    def unfold(self, kernel):
        """`H⁻¹ W G⁻¹`, for methods whose blocks are orthogonal."""
        return self._fold(kernel, inverse=True)

    def _fold(self, kernel, inverse, kept=None):
        dtype = kernel.dtype
        kernel = ops.cast(kernel, "float32")
        # `multiply` acts on rows: W G is just that, H W is (Wᵀ Hᵀ)ᵀ. Taking out
        # an orthogonal H or G is one more transpose.
        for side, map_axis, transposed in (
            ("input", self.view.map_kernel_inputs, not inverse),
            ("output", self.view.map_kernel_outputs, inverse),
        ):
            factors = self.factors(side, kept)
            if factors is None:
                continue
            if transposed:
                factors = reflections.transpose(*factors)
            kernel = map_axis(
                lambda rows, f=factors: reflections.multiply(rows, *f), kernel
            )
        return ops.cast(kernel, dtype)

    def save_own_variables(self, store):
        plain_file.save_vectors(self, store)

    def load_own_variables(self, store):
        plain_file.load_vectors(self, store)

    def quantize(self, mode=None, type_check=True, config=None):
        # `Model.quantize` asks only layers without sub-layers, so it would pass
        # over the adapted layer without a word and arrive here.
        raise quantizing_error(self.path.rpartition("/")[0], mode)


def quantizing_error(layer_path, mode) -> ValueError:
    """The error of quantizing a layer that has an adapter."""
    return ValueError(
        f"Layer '{layer_path}' has an ETHER adapter and can't be quantized. "
        "Quantize the model first and apply ETHER to the quantized model, or "
        "call `keras_ether.merge(model)` before quantizing. Received: "
        f"mode={mode!r}"
    )


def check_arguments(method, rank_blocks, side, dropout, seed):
    """Checks what `Adapter` takes.

    Returns:
        `(rank_blocks, dropout, seed)` as numbers of plain Python, which files
        and configurations can hold.

    Raises:
        ValueError: for the first argument out of its range.
    """
    methods.get(method)
    blocks = values.integer(rank_blocks)
    if blocks is None or blocks <= 0:
        raise ValueError(
            "`rank_blocks` must be a positive integer. Received: "
            f"rank_blocks={rank_blocks!r}"
        )
    if side is not None and side not in methods.SIDES:
        raise ValueError(
            f"`side` must be one of {methods.SIDES}, or None for the method's "
            f"own. Received: side={side!r}"
        )
    probability = values.real(dropout)
    if probability is None or not 0 <= probability < 1:
        raise ValueError(
            "`dropout` must be a number of at least 0 and less than 1. "
            f"Received: dropout={dropout!r}"
        )
    number = values.integer(seed)
    if seed is not None and (number is None or number < 0):
        raise ValueError(
            "`seed` must be a non-negative integer or None. Received: "
            f"seed={seed!r}"
        )
    return blocks, probability, number


def check_blocks(layer_path, sizes, method, rank_blocks, side):
    """Raises a `ValueError` if the blocks don't fit a transformed side.

    They don't if their number does not divide it, or if blocks so narrow could
    not train: a unit vector of one number is 1 or −1.

    Args:
        layer_path: String that names the layer in the message.
        sizes: `(experts, inputs, outputs)` of the kernel.
        method: String, name of the method.
        rank_blocks: Integer, number of blocks.
        side: Side, or `None` for the method's own.
    """
    _, inputs, outputs = sizes
    side = side or methods.get(method).side
    transformed = {"input": [inputs], "output": [outputs]}.get(
        side, [inputs, outputs]
    )
    width = methods.get(method).min_width
    fitting = [
        n
        for n in range(1, min(transformed) // width + 1)
        if all(size % n == 0 for size in transformed)
    ]
    if rank_blocks in fitting:
        return
    if all(size % rank_blocks == 0 for size in transformed):
        problem = "gives blocks of one number, which never train, in"
    else:
        problem = "does not divide"
    near = sorted(sorted(fitting, key=lambda n: abs(n - rank_blocks))[:4])
    counts = f"Block counts near it that fit: {near}. Or" if near else "Either"
    raise ValueError(
        f"`rank_blocks={rank_blocks}` {problem} layer '{layer_path}', "
        f"whose kernel has d={inputs} inputs and f={outputs} outputs "
        f"(method='{method}' transforms side='{side}'). {counts} leave the "
        "layer out with `exclude`, or keep it trainable with `trainable`."
    )
