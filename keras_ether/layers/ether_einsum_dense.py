"""`EtherEinsumDense`."""

import keras

from keras_ether.adapters.adapted_dense import AdaptedDense
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherEinsumDense(StandaloneLayer, AdaptedDense, keras.layers.EinsumDense):
    """An `EinsumDense` layer whose frozen kernel is transformed by reflections.

    The kernel is seen as a `(d, f)` matrix: `d` is the product of the axes that
    the equation contracts, `f` that of the axes that it adds. Axes that input,
    kernel and output share are experts, each with blocks of its own. See
    `keras_ether.layers.EtherDense` for the formula.

    Args:
        equation: Einsum equation, such as `"btd,dnh->btnh"`.
        output_shape: Integer or tuple, the shape of the output without the
            batch axis.
        *args: Further arguments of `keras.layers.EinsumDense`, in its order.
        rank_blocks: Integer, number of diagonal blocks `n`. It must divide
            every transformed dimension. Defaults to 4.
        method: `"ether"` (`d` numbers), `"ether+"` (`2 (d + f)` numbers),
            `"oft"` or `"naive"`. Defaults to `"ether"`.
        side: `"input"`, `"output"` or `"both"`. `None`, the default, takes the
            method's own: both for `"ether+"`, else the input.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        **kwargs: Keyword arguments of `keras.layers.EinsumDense`.

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
