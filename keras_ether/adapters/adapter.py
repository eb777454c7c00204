"""The layer that owns one kernel's vectors."""

import random

import keras
import numpy as np
from keras import ops

from keras_ether import methods
from keras_ether.adapters import weights_file
from keras_ether.adapters.arguments import check_arguments
from keras_ether.adapters.arguments import quantizing_error
from keras_ether.adapters.switch import Switch
from keras_ether.ops import reflections
from keras_ether.ops.backend import precise_products
from keras_ether.ops.backend import snapshot
from keras_ether.ops.backend import tensor
from keras_ether.ops.custom_gradient import is_gradient_wanted
from keras_ether.ops.values import to_numpy


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
        # `keras_ether.adapters.weights_file`.
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
        self.strength = self._new_strength()

    def _new_strength(self):
        """How far the blocks act, `I + strength (block − I)`.

        It is 1, or 0 while `keras_ether.disabled` has the base compute, and a
        variable, so that compiled functions read it. Its path is beside the
        adapter's: a rule of a layout map for vectors could not place a number.
        """
        vector = next(iter(self.vectors.values()))
        owner, _, name = vector.path.rsplit("/", 2)[0].rpartition("/")
        with keras.name_scope(name or self.name, override_parent=owner):
            return keras.Variable(
                1.0,
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="ether_strength",
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
        return not to_numpy(self.strength)

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

    def trained_factors(self, side: str):
        """The factors of one side's blocks, whether they act now or not.

        See `keras_ether.ops.reflections`.

        Args:
            side: `"input"` or `"output"`.

        Returns:
            `(left, right)`, or `None` for a side that is not transformed.
        """
        if not self.transforms(side):
            return None
        method = methods.get(self.method)
        return method.factors(
            *(tensor(getattr(self, f"{side}_{n}")) for n in method.weights)
        )

    def factors(self, side: str, kept: dict | None = None):
        """The factors of one side's blocks as they act in a call.

        Args:
            side: `"input"` or `"output"`.
            kept: What `draw_kept` has drawn for this call, or `None` for all
                blocks. Defaults to `None`.

        Returns:
            `(left, right)`, or `None` for a side that is not transformed.
        """
        factors = self.trained_factors(side)
        if factors is None:
            return None
        left, right = factors
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
        """`H W G` as it acts in a call, in the dtype of the kernel.

        Computed in float32.
        """
        return self._fold(kernel, lambda side: self.factors(side, kept))

    def fold_trained(self, kernel):
        """`H W G`, whether the adapter acts now or not."""
        return self._fold(kernel, self.trained_factors)

    def unfold(self, kernel):
        """`H⁻¹ W G⁻¹`, for methods whose blocks are orthogonal."""
        return self._fold(kernel, self.factors, inverse=True)

    def _fold(self, kernel, factors_of, inverse=False):
        dtype = kernel.dtype
        kernel = ops.cast(kernel, "float32")
        # `multiply` acts on rows: W G is just that, H W is (Wᵀ Hᵀ)ᵀ. Taking out
        # an orthogonal H or G is one more transpose.
        for side, map_axis, transposed in (
            ("input", self.view.map_kernel_inputs, not inverse),
            ("output", self.view.map_kernel_outputs, inverse),
        ):
            factors = factors_of(side)
            if factors is None:
                continue
            if transposed:
                factors = reflections.transpose(*factors)
            with precise_products():
                kernel = map_axis(
                    lambda rows, f=factors: reflections.multiply(rows, *f),
                    kernel,
                )
        return ops.cast(kernel, dtype)

    def save_own_variables(self, store):
        weights_file.save_vectors(self, store)

    def load_own_variables(self, store):
        weights_file.load_vectors(self, store)

    def quantize(self, mode=None, type_check=True, config=None):
        # `Model.quantize` asks only layers without sub-layers, so it would pass
        # over the adapted layer without a word and arrive here.
        raise quantizing_error(self.path.rpartition("/")[0], mode)
