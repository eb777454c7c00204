"""`EtherDense`."""

from collections.abc import Callable
from typing import Any

import keras

from keras_ether.adapters.adapted_dense import AdaptedDense
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherDense(StandaloneLayer, AdaptedDense, keras.layers.Dense):
    """A `Dense` layer with a frozen kernel, transformed by trained reflections.

    It computes `output = activation((inputs H) kernel G + bias)`. The
    block-diagonal `H` and `G` are made of trained vectors (Bini et al., ICML
    2024, sections 3.2 to 3.4). Kernel and bias are frozen: load them from a
    pretrained layer.

    Args:
        units: Positive integer, dimensionality `f` of the output space.
        activation: Name or function, applied last, or `None`. Defaults to
            `None`.
        use_bias: Boolean, whether a bias is added. Defaults to `True`.
        kernel_initializer: Initializer of the frozen kernel. Defaults to
            `"glorot_uniform"`.
        bias_initializer: Initializer of the frozen bias. Defaults to `"zeros"`.
        kernel_regularizer: Regularizer of the kernel, or `None`. Defaults to
            `None`.
        bias_regularizer: Regularizer of the bias, or `None`. Defaults to
            `None`.
        activity_regularizer: Regularizer of the outputs, or `None`. Defaults to
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
        **kwargs: Further keyword arguments of `keras.layers.Dense`,
            such as `name` and `dtype`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide a transformed dimension.

    Input shape:
        Tensor of shape `(batch_size, ..., d)`.

    Output shape:
        Tensor of shape `(batch_size, ..., units)`.

    Example:

    >>> layer = EtherDense(64, activation="relu", rank_blocks=4)
    >>> tuple(layer(np.ones((2, 32))).shape)
    (2, 64)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    32
    """

    plain_class = keras.layers.Dense
    """The class of the layer without an adapter."""

    def __init__(
        self,
        units: int,
        activation: str | Callable | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
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
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
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
