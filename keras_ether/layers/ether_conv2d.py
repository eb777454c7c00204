"""`EtherConv2D`."""

import keras

from keras_ether.adapters.adapted_conv import AdaptedConv
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherConv2D(StandaloneLayer, AdaptedConv, keras.layers.Conv2D):
    """A `Conv2D` layer whose frozen kernel is transformed by reflections.

    `output = activation(conv(inputs H, kernel) G + bias)`, with `H` on the
    input channels and `G` on the filters, at every place alike. Groups have
    blocks of their own. See `keras_ether.layers.EtherDense` for the formula.

    Args:
        filters: Integer, number `f` of filters.
        kernel_size: Integer or pair, the size of the window.
        *args: Further arguments of `keras.layers.Conv2D`, in its order.
        rank_blocks: Integer, number of diagonal blocks `n` per group. It must
            divide the channels of each group that are transformed. Defaults to
            4.
        method: `"ether"` (`d` numbers for `d` channels), `"ether+"`
            (`2 (d + f)` numbers), `"oft"` or `"naive"`. Defaults to `"ether"`.
        side: `"input"`, `"output"` or `"both"`. `None`, the default, takes the
            method's own: both for `"ether+"`, else the input.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        **kwargs: Keyword arguments of `keras.layers.Conv2D`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide a transformed dimension.

    Example:

    >>> layer = EtherConv2D(16, 3, rank_blocks=2)
    >>> tuple(layer(np.ones((2, 5, 5, 8))).shape)
    (2, 3, 3, 16)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    8
    """

    plain_class = keras.layers.Conv2D
