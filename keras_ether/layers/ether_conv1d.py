"""`EtherConv1D`."""

from collections.abc import Callable
from typing import Any

import keras

from keras_ether.adapters.adapted_conv import AdaptedConv
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherConv1D(StandaloneLayer, AdaptedConv, keras.layers.Conv1D):
    """A `Conv1D` layer whose frozen kernel is transformed by reflections.

    `output = activation(conv(inputs H, kernel) G + bias)`, with `H` on the
    input channels and `G` on the filters, alike at every position. Each group
    has its own blocks. See `keras_ether.layers.EtherDense` for the formula.

    Args:
        filters: Integer, number `f` of filters.
        kernel_size: Integer, the size of the window.
        strides: Integer or tuple, the step of the window. Defaults to 1.
        padding: `"valid"`, `"same"` or, in one dimension, `"causal"`. Defaults
            to `"valid"`.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for the
            one of Keras's configuration. Defaults to `None`.
        dilation_rate: Integer or tuple, the dilation of the window. Defaults to
            1.
        groups: Integer, number of groups of channels that are convolved
            separately. Defaults to 1.
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
        rank_blocks: Integer, number of diagonal blocks `n` per group. It must
            divide the channels of each group that are transformed. Defaults to
            4.
        method: `"ether"` (`d` parameters for `d` channels), `"ether+"`
            (`2 (d + f)` parameters), `"oft"` or `"naive"`. Defaults to
            `"ether"`.
        side: `"input"`, `"output"` or `"both"`. `None`, the default, uses the
            method's: both for `"ether+"`, else the input.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        **kwargs: Further keyword arguments of `keras.layers.Conv1D`,
            such as `name` and `dtype`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide a transformed dimension.

    Example:

    >>> layer = EtherConv1D(16, 3, rank_blocks=2)
    >>> tuple(layer(np.ones((2, 5, 8))).shape)
    (2, 3, 16)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    8
    """

    plain_class = keras.layers.Conv1D

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, ...] = 1,
        groups: int = 1,
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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
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
            **kwargs,
        )
