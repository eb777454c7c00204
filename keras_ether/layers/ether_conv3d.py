"""`EtherConv3D`."""

import keras

from keras_ether.layers.conv_layer import StandaloneConv


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherConv3D(StandaloneConv, keras.layers.Conv3D):
    """A `Conv3D` layer whose frozen kernel is transformed by reflections.

    `output = activation(conv(inputs H, kernel) G + bias)`, with `H` on the
    input channels and `G` on the filters, the same at every position. Each
    group has its own blocks. See `keras_ether.layers.EtherDense` for the
    formula.

    Args:
        filters: Integer, number `f` of filters.
        kernel_size: Integer or triple, the size of the window.
        strides: Integer or tuple, the step of the window. Defaults to 1.
        padding: `"valid"` or `"same"`. Defaults to `"valid"`.
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
        **kwargs: Further keyword arguments of `keras.layers.Conv3D`,
            such as `name` and `dtype`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide a transformed dimension.

    Example:

    >>> layer = EtherConv3D(16, 3, rank_blocks=2)
    >>> tuple(layer(np.ones((2, 4, 4, 4, 8))).shape)
    (2, 2, 2, 2, 16)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    8
    """

    plain_class = keras.layers.Conv3D
    """The class of the layer without an adapter."""
