"""`EtherEmbedding`."""

import keras

from keras_ether.adapters.adapted_embedding import AdaptedEmbedding
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherEmbedding(StandaloneLayer, AdaptedEmbedding, keras.layers.Embedding):
    """An `Embedding` whose frozen table is transformed by trained reflections.

    `output = embeddings[inputs] G`: ids have no input side, so every method
    transforms the output. See `keras_ether.layers.EtherDense` for the formula.

    Args:
        input_dim: Integer, size of the vocabulary.
        output_dim: Integer, dimensionality `f` of the output space.
        *args: Further arguments of `keras.layers.Embedding`, in its order, up
            to `mask_zero`.
        weights: Array of shape `(input_dim, output_dim)`, the table, or `None`.
        rank_blocks: Integer, number of diagonal blocks `n`. It must divide
            `output_dim`. Defaults to 4.
        method: `"ether"` (`f` numbers), `"ether+"` (`2 f` numbers), `"oft"` or
            `"naive"`. Defaults to `"ether"`.
        side: `"output"` or `None`, which is the same. Defaults to `None`.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        **kwargs: Keyword arguments of `keras.layers.Embedding`.

    Raises:
        ValueError: if an argument is out of its range, or, when the layer is
            built, if `rank_blocks` does not divide `output_dim`.

    Example:

    >>> layer = EtherEmbedding(100, 16, rank_blocks=4)
    >>> tuple(layer(np.array([[1, 2, 3]])).shape)
    (1, 3, 16)
    >>> sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
    16
    """

    plain_class = keras.layers.Embedding

    def __init__(self, *args, weights=None, **kwargs):
        # `Embedding` would build itself around them before it has an adapter.
        super().__init__(*args, **kwargs)
        if weights is not None:
            self.build()
            self.base_kernel.assign(weights)
