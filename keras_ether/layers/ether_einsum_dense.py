"""`EtherEinsumDense`."""

from collections.abc import Callable
from typing import Any

import keras

from keras_ether.adapters.adapted_dense import AdaptedDense
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherEinsumDense(StandaloneLayer, AdaptedDense, keras.layers.EinsumDense):
    """An `EinsumDense` layer whose frozen kernel is transformed by reflections.

    The kernel is treated as a `(d, f)` matrix: `d` is the product of the axes
    that the equation contracts, `f` the product of the axes that it adds. Axes
    that input, kernel and output share are experts, each with its own blocks.
    See `keras_ether.layers.EtherDense` for the formula.

    Args:
        equation: Einsum equation, such as `"btd,dnh->btnh"`.
        output_shape: Integer or tuple, the shape of the output without the
            batch axis.
        activation: Name or function, applied last, or `None`. Defaults to
            `None`.
        bias_axes: String of the output axes that the bias has, or `None` for no
            bias. Defaults to `None`.
        kernel_initializer: Initializer of the frozen kernel. Defaults to
            `"glorot_uniform"`.
        bias_initializer: Initializer of the frozen bias. Defaults to `"zeros"`.
        kernel_regularizer: Regularizer of the kernel, or `None`. Defaults to
            `None`.
        bias_regularizer: Regularizer of the bias, or `None`. Defaults to
            `None`.
        kernel_constraint: Constraint of the kernel, or `None`. Defaults to
            `None`.
        bias_constraint: Constraint of the bias, or `None`. Defaults to `None`.
        rank_blocks: Integer, number of diagonal blocks `n`. It must divide
            every transformed dimension. Defaults to 4.
        method: `"ether"` (`d` parameters), `"ether+"` (`2 (d + f)` parameters),
            `"oft"` or `"naive"`. Defaults to `"ether"`.
        side: `"input"`, `"output"`, `"both"` or `"narrow"`. `None` uses the
            method's: both for `"ether+"`, else the input.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        strength: `None`, `"learned"` or a number in `(0, 1]`, see
            `keras_ether.apply`. Defaults to `None`.
        rate_multiplier: Float or `None`, the factor by which a learned strength
            multiplies the learning rate: `1,800 / N` suits a network of `N`
            such layers. `None`, the default, is 20 if the strength is learned.
        **kwargs: Further keyword arguments of `keras.layers.EinsumDense`,
            such as `name` and `dtype`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide a transformed dimension.

    Example:

    >>> layer = EtherEinsumDense("btd,dnh->btnh", (None, 4, 8), rank_blocks=2)
    >>> tuple(layer(np.ones((2, 5, 32))).shape)
    (2, 5, 4, 8)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    32
    """

    plain_class = keras.layers.EinsumDense
    """The class of the layer without an adapter."""

    def __init__(
        self,
        equation: str,
        output_shape: int | tuple[int | None, ...],
        activation: str | Callable | None = None,
        bias_axes: str | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        rank_blocks: int = 4,
        method: str = "ether",
        side: str | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        strength: float | str | None = None,
        rate_multiplier: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            equation,
            output_shape,
            activation=activation,
            bias_axes=bias_axes,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            rank_blocks=rank_blocks,
            method=method,
            side=side,
            dropout=dropout,
            seed=seed,
            strength=strength,
            rate_multiplier=rate_multiplier,
            **kwargs,
        )
