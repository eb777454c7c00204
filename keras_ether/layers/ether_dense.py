"""`EtherDense`."""

import keras

from keras_ether.adapters.adapted_dense import AdaptedDense
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherDense(StandaloneLayer, AdaptedDense, keras.layers.Dense):
    """A `Dense` layer with a frozen kernel, transformed by trained reflections.

    `output = activation((inputs H) kernel G + bias)`, where the block-diagonal
    `H` and `G` are made of trained vectors (Bini et al., ICML 2024, sections
    3.2 to 3.4). Kernel and bias are frozen, and meant to be loaded from a
    pretrained layer.

    Args:
        units: Positive integer, dimensionality `f` of the output space.
        *args: Further arguments of `keras.layers.Dense`, in its order.
        rank_blocks: Integer, number of diagonal blocks `n`. It must divide
            every transformed dimension. Defaults to 4.
        method: `"ether"` (`d` numbers), `"ether+"` (`2 (d + f)` numbers),
            `"oft"` or `"naive"`. Defaults to `"ether"`.
        side: `"input"`, `"output"` or `"both"`. `None`, the default, takes the
            method's own: both for `"ether+"`, else the input.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        **kwargs: Keyword arguments of `keras.layers.Dense`.

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
