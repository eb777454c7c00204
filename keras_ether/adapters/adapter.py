"""The layer that owns one kernel's vectors."""

import functools
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.adapters import per_example
from keras_ether.adapters import weights_file
from keras_ether.adapters.acting_strength import ActingStrength
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.adapter_config import checked_seed
from keras_ether.adapters.quantized_kernel import quantizing_error
from keras_ether.ops import placement
from keras_ether.ops import reflections
from keras_ether.ops.backend import precise_products
from keras_ether.ops.backend import snapshot
from keras_ether.ops.backend import tensor
from keras_ether.ops.conv_view import ConvView
from keras_ether.ops.custom_gradient import is_gradient_wanted
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.types import Factors
from keras_ether.types import Tensor
from keras_ether.types import Variable


class Adapter(ActingStrength, keras.layers.Layer):
    """The trained transformation of one kernel, `H W G`.

    It is a sub-layer of the layer whose kernel it transforms, so Keras tracks,
    saves and places the vectors while that layer's own variables keep their
    plain format. It is not called: the outer layer asks it to transform inputs,
    outputs or the kernel.

    Args:
        config: An `AdapterConfig`: method, blocks, side and dropout.
        seed: Integer or `None`, for the random start and for dropout.
        name: String, name of the layer. Defaults to `"ether"`.

    Raises:
        ValueError: if `seed` is not one of the above.
    """

    def __init__(
        self,
        config: AdapterConfig,
        seed: int | None = None,
        name: str = "ether",
    ) -> None:
        seed = checked_seed(seed)
        # Float32 under any dtype policy: 16 bits would lose a vector's small
        # steps.
        super().__init__(name=name, dtype="float32")
        self.config = config.resolved
        self.method = config.variant
        self.seed = random.randrange(2**31 - 1) if seed is None else seed
        self.seed_generator = (
            keras.random.SeedGenerator(self.seed) if config.dropout else None
        )
        # Set by the outer layer while a file is written or read, see
        # `keras_ether.adapters.weights_file`.
        self.base_fingerprint = None
        self.loading = None

    def build(
        self, view: MatrixView | ConvView, kernel_shape: tuple[int, ...]
    ) -> None:
        self.view = view
        self.kernel_shape = tuple(kernel_shape)
        sizes = view.sizes(kernel_shape)
        self.config = self.config.for_sizes(sizes)
        self.blocks = sizes[0] * self.config.rank_blocks
        self.widths = self.config.widths(sizes)
        for name, value in self._start().items():
            setattr(self, name, self._add_vector(name, value))
        self.build_strength(next(iter(self.vectors.values())))

    def _add_vector(self, name: str, value: np.ndarray) -> Variable:
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

    def _start(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return {
            f"{side}_{name}": value
            for side, width in self.widths.items()
            for name, value in zip(
                self.method.weights,
                self.method.start(self.blocks, width, rng),
                strict=True,
            )
        }

    def restart(self) -> None:
        """Resets the vectors to their start."""
        for name, value in self._start().items():
            getattr(self, name).assign(value)

    @property
    def vectors(self) -> dict:
        """The trained variables by name, such as `"input_u"`."""
        return {
            f"{side}_{name}": getattr(self, f"{side}_{name}")
            for side in self.widths
            for name in self.method.weights
        }

    def draw_kept(self, training: bool | Tensor | None = False) -> dict:
        """Draws which blocks dropout keeps in one call, by side.

        Args:
            training: Whether the call is a training call; it may be a tensor.

        Returns:
            Dictionary from `"input"` and `"output"` to a boolean tensor of
            shape `(blocks, 1, 1)`, empty if dropout is inactive.
        """
        if not self.config.dropout or training is False:
            return {}
        kept = {}
        for side in self.widths:
            drawn = keras.random.uniform(
                (self.blocks, 1, 1), seed=self.seed_generator
            )
            kept[side] = drawn >= self.config.dropout
            if training is not True:
                kept[side] = ops.logical_or(
                    kept[side], ops.logical_not(training)
                )
        return kept

    def trained_factors(self, side: str) -> Factors | None:
        """The factors of one side's blocks, at full strength.

        See `keras_ether.ops.reflections`.

        Args:
            side: `"input"` or `"output"`.

        Returns:
            `(left, right)`, or `None` for a side that is not transformed.
        """
        if side not in self.widths:
            return None
        vectors = self.vectors_of(side)
        left, right = self.method.factors(*map(tensor, vectors))
        left = placement.as_vectors(left, vectors[0])
        if right is not None:
            right = placement.as_vectors(right, vectors[0])
        return left, right

    def vectors_of(self, side: str) -> list[Variable]:
        """The trained variables of one side, the arguments of its factors."""
        return [getattr(self, f"{side}_{name}") for name in self.method.weights]

    def factors_of_sides(
        self, kept: dict | None
    ) -> tuple[Factors | None, Factors | None]:
        """`factors` of either side, at one strength."""
        strength = snapshot(self.strength)
        return (
            self.factors("input", kept, strength),
            self.factors("output", kept, strength),
        )

    def factors(
        self,
        side: str,
        kept: dict | None = None,
        strength: Tensor | None = None,
    ) -> Factors | None:
        """The factors of one side's blocks as they act in a call.

        Args:
            side: `"input"` or `"output"`.
            kept: The result of `draw_kept` for this call, or `None` for all
                blocks. Defaults to `None`.
            strength: Scalar tensor, or `None` for the current strength.
                Defaults to `None`.

        Returns:
            `(left, right)`, or `None` for a side that is not transformed. Where
            each example has its own, they have one more axis, the first.
        """
        examples = per_example.current()
        if examples is None or side not in self.widths:
            factors = self.trained_factors(side)
        else:
            factors = examples.factors(self, side)
        if factors is None:
            return None
        left, right = factors
        left = left * (
            snapshot(self.strength) if strength is None else strength
        )
        if kept:
            left = left * ops.cast(kept[side], left.dtype)
        return left, right

    def transform_inputs(
        self,
        x: Tensor,
        factors: Factors | None,
        training: bool | Tensor | None = False,
    ) -> Tensor:
        """`x H`, or `x` where `factors` is `None`."""
        return self._transform(x, factors, self.view.map_inputs, training)

    def transform_outputs(
        self,
        y: Tensor,
        factors: Factors | None,
        training: bool | Tensor | None = False,
    ) -> Tensor:
        """`y G`, or `y` where `factors` is `None`.

        Nothing else may refer to `y`: its memory may be reused.
        """
        return self._transform(
            y, factors, self.view.map_outputs, training, owned=True
        )

    def _transform(
        self,
        x: Tensor,
        factors: Factors | None,
        map_axis: Callable,
        training: bool | Tensor | None,
        owned: bool = False,
    ) -> Tensor:
        if factors is None:
            return x
        return map_axis(
            lambda rows: reflections.multiply(
                rows,
                *factors,
                training=is_gradient_wanted(training),
                owned=owned,
            ),
            x,
        )

    def fold(self, kernel: Tensor, kept: dict | None = None) -> Tensor:
        """`H W G` as it acts in a call, in the dtype of the kernel.

        Computed in float32.
        """
        return self._fold(kernel, lambda side: self.factors(side, kept))

    def fold_trained(self, kernel: Tensor) -> Tensor:
        """`H W G`, at full strength."""
        return self._fold(kernel, self.trained_factors)

    def unfold(self, kernel: Tensor) -> Tensor:
        """`H⁻¹ W G⁻¹` at full strength, for methods of orthogonal blocks."""
        return self._fold(kernel, self.trained_factors, inverse=True)

    def _fold(
        self,
        kernel: Tensor,
        factors_of: Callable[[str], Factors | None],
        inverse: bool = False,
    ) -> Tensor:
        dtype = kernel.dtype
        kernel = ops.cast(kernel, "float32")
        # `multiply` acts on rows: it gives W G, and H W as (Wᵀ Hᵀ)ᵀ. The
        # inverse of an orthogonal H or G is its transpose.
        for side, map_axis, transposed in (
            ("input", self.view.map_kernel_inputs, not inverse),
            ("output", self.view.map_kernel_outputs, inverse),
        ):
            factors = factors_of(side)
            if factors is None:
                continue
            if transposed:
                factors = reflections.transpose(*factors)
            multiply = functools.partial(_multiply, factors)
            with precise_products():
                kernel = map_axis(multiply, kernel)
        return ops.cast(kernel, dtype)

    def save_own_variables(self, store: Any) -> None:
        weights_file.save_vectors(self, store)

    def load_own_variables(self, store: Any) -> None:
        weights_file.load_vectors(self, store)

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: Any = None,
    ) -> None:
        # `Model.quantize` calls only layers without sub-layers, so it would
        # skip the adapted layer silently and call this one.
        raise quantizing_error(self.path.rpartition("/")[0], mode)


def _multiply(factors: Factors, rows: Tensor) -> Tensor:
    return reflections.multiply(rows, *factors)
