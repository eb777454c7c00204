"""The constructor that the convolution layers share."""

from collections.abc import Callable
from typing import Any

from keras_ether.adapters.adapted_conv import AdaptedConv
from keras_ether.layers.ether_layer import StandaloneLayer


class StandaloneConv(StandaloneLayer, AdaptedConv):
    """A convolution with its own adapter, in any number of dimensions."""

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
        strength: float | str | None = None,
        rate_multiplier: float | None = None,
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
            strength=strength,
            rate_multiplier=rate_multiplier,
            **kwargs,
        )
