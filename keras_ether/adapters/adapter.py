"""The layer that owns one kernel's vectors."""

import random
import weakref
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether.adapters import optimizer_state
from keras_ether.adapters import weights_file
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.adapter_config import checked_seed
from keras_ether.adapters.call import Call
from keras_ether.adapters.quantized_kernel import quantizing_error
from keras_ether.adapters.reduction import Reduced
from keras_ether.adapters.runtime_strength import RuntimeStrength
from keras_ether.ops import placement
from keras_ether.ops import reflections
from keras_ether.ops.backend import at_least_float32
from keras_ether.ops.backend import precise_products
from keras_ether.ops.backend import tensor
from keras_ether.ops.conv_view import ConvView
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.ops.traced import compiled
from keras_ether.types import Factors
from keras_ether.types import Sides
from keras_ether.types import Tensor
from keras_ether.types import Variable


class Adapter(Reduced, RuntimeStrength, keras.layers.Layer):
    """The trained transformation of one kernel, `H W G`.

    It is a sub-layer of the layer whose kernel it transforms. So Keras tracks,
    saves and places the vectors, and that layer's own variables keep their
    plain format. It has no `call`: the outer layer calls its methods to
    transform inputs, outputs or the kernel.

    Args:
        config: An `AdapterConfig`: method, blocks, side and dropout.
        seed: Integer or `None`, for the random start and for dropout.
        values: Dictionary from the name of a vector, such as `"input_u"`, to
            its initial value. With values, only a seed for dropout is drawn.
            Defaults to `None`, for the method's initial values.
        name: String, name of the layer. Defaults to `"ether"`.

    Raises:
        ValueError: if `seed` is not one of the above.
    """

    def __init__(
        self,
        config: AdapterConfig,
        seed: int | None = None,
        values: Mapping[str, np.ndarray] | None = None,
        name: str = "ether",
    ) -> None:
        seed = checked_seed(seed)
        if seed is None and (values is None or config.dropout):
            seed = random.randrange(2**31 - 1)
        # Float32 under any dtype policy: small updates would be lost in 16
        # bits.
        super().__init__(name=name, dtype="float32")
        self.config = config.resolved
        self.method = config.variant
        self.seed = seed
        self._values = values
        self.seed_generator = (
            keras.random.SeedGenerator(self.seed) if config.dropout else None
        )
        # Set by the outer layer while a file is written or read, see
        # `keras_ether.adapters.weights_file`.
        self.base_fingerprint = None
        self.loading = None
        # Models by the adapter's depth in them, which each sets while a file is
        # written or read, see `keras_ether.adapters.optimizer_state`. Hidden
        # from Keras's trackers.
        self.__dict__["passed"] = weakref.WeakValueDictionary()

    def build(
        self, view: MatrixView | ConvView, kernel_shape: tuple[int, ...]
    ) -> None:
        self.view = view
        self.kernel_shape = tuple(kernel_shape)
        sizes = view.sizes(kernel_shape)
        self.config = self.config.for_sizes(sizes)
        self.blocks = sizes[0] * self.config.rank_blocks
        self.widths = self.config.widths(sizes)
        values = self._start() if self._values is None else self._values
        self._values = None
        for name in self._names:
            setattr(self, name, self._add_vector(name, values[name]))
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
                "of a layout map for kernels should end in 'kernel', and a "
                "rule for vectors should be '.*/ether/.*'. Without a rule, "
                "vectors are replicated."
            ) from error

    def _start(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed or 0)
        return {
            f"{side}_{name}": value
            for side, width in self.widths.items()
            for name, value in self.method.initial(
                self.blocks, width, rng
            ).items()
        }

    def restart(self) -> None:
        """Resets the vectors to their initial values."""
        for name, value in self._start().items():
            getattr(self, name).assign(value)

    @property
    def vectors(self) -> dict:
        """The trained variables by name, such as `"input_u"`."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def _names(self) -> list[str]:
        return [
            f"{side}_{name}"
            for side in self.widths
            for name in self.method.weights
        ]

    def draw_keep_masks(self, training: bool | Tensor) -> dict[str, Tensor]:
        """Draws which blocks dropout keeps in one call, by side.

        These are boolean tensors of shape `(blocks, 1, 1)`, and none if dropout
        is inactive. `training` is a tensor in a call that JAX rematerializes.
        """
        if not self.config.dropout or training is False:
            return {}
        masks = {}
        for side in self.widths:
            drawn = keras.random.uniform(
                (self.blocks, 1, 1), seed=self.seed_generator
            )
            masks[side] = drawn >= self.config.dropout
            if training is not True:
                masks[side] = ops.logical_or(
                    masks[side], ops.logical_not(training)
                )
        return masks

    def trained_factors(self, side: str) -> Factors | None:
        """The factors of one side's blocks, at full strength.

        `None` for a side that is not transformed. See
        `keras_ether.ops.reflections`.
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

    def transform_inputs(
        self, x: Tensor, factors: Factors | None, gradient: bool
    ) -> Tensor:
        """`x H` by the factors of a `Call`, or `x` where they are `None`.

        `gradient` is whether a gradient may be needed.
        """
        return _transform(x, factors, self.view.map_inputs, gradient)

    def transform_outputs(
        self, y: Tensor, factors: Factors | None, gradient: bool
    ) -> Tensor:
        """`y G`, see `transform_inputs`.

        `y` are the outputs before the bias. Nothing else may refer to them:
        their memory may be reused.
        """
        return _transform(
            y, factors, self.view.map_outputs, gradient, owned=True
        )

    def fold(self, kernel: Tensor, call: Call | None = None) -> Tensor:
        """`H W G` as it acts in a call, or outside of any, the default.

        It is computed in float32, or in float64 if that is the kernel's dtype,
        and returned in the kernel's dtype.
        """
        # The program of a call is compiled as a whole.
        folded = _folded if call is None else _fold
        factors_of = (call or Call.outside()).factors(self)
        return folded(self.view, False, kernel, factors_of)

    def fold_trained(self, kernel: Tensor) -> Tensor:
        """`H W G`, at full strength."""
        return _folded(self.view, False, kernel, self._trained())

    def unfold(self, kernel: Tensor) -> Tensor:
        """`H⁻¹ W G⁻¹` at full strength, for methods of orthogonal blocks."""
        return _folded(self.view, True, kernel, self._trained())

    def _trained(self) -> Sides:
        return {s: self.trained_factors(s) for s in ("input", "output")}

    def save_own_variables(self, store: Any) -> None:
        optimizers = optimizer_state.take(self, optimizer_state.SAVE)
        weights_file.save_vectors(self, store)
        optimizer_state.save(optimizers, store)

    def load_own_variables(self, store: Any) -> None:
        optimizers = optimizer_state.take(self, optimizer_state.LOAD)
        weights_file.load_vectors(self, store)
        optimizer_state.load(optimizers, store)

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: Any = None,
    ) -> None:
        # `Model.quantize` calls only layers without sub-layers, so it would
        # skip the adapted layer silently and call this one.
        raise quantizing_error(self.path.rpartition("/")[0], mode)


def _fold(
    view: MatrixView | ConvView,
    inverse: bool,
    kernel: Tensor,
    factors_of: Sides,
) -> Tensor:
    dtype = kernel.dtype
    kernel = at_least_float32(kernel)
    # `multiply` acts on rows: it gives W G, and H W as (Wᵀ Hᵀ)ᵀ. The inverse of
    # an orthogonal H or G is its transpose.
    for side, map_axis, transposed in (
        ("input", view.map_kernel_inputs, not inverse),
        ("output", view.map_kernel_outputs, inverse),
    ):
        factors = factors_of[side]
        if factors is None:
            continue
        if transposed:
            factors = reflections.transpose(*factors)
        with precise_products():
            kernel = _transform(kernel, factors, map_axis)
    return ops.cast(kernel, dtype)


# As one program, JAX needs no memory for results between.
_folded = compiled(_fold, static=(0, 1))


def _transform(
    x: Tensor,
    factors: Factors | None,
    map_axis: Callable,
    gradient: bool = False,
    owned: bool = False,
) -> Tensor:
    if factors is None:
        return x
    return map_axis(
        lambda rows: reflections.multiply(
            rows, *factors, training=gradient, owned=owned
        ),
        x,
    )
