"""`EtherEmbedding`."""

from typing import Any

import keras
import numpy as np

from keras_ether.adapters.adapted_embedding import AdaptedEmbedding
from keras_ether.layers.ether_layer import StandaloneLayer


@keras.saving.register_keras_serializable(package="keras_ether")
class EtherEmbedding(StandaloneLayer, AdaptedEmbedding, keras.layers.Embedding):
    """An `Embedding` whose frozen table is transformed by trained reflections.

    `output = embeddings[inputs] G`: an embedding has no input side, so every
    method transforms the output. See `keras_ether.layers.EtherDense` for the
    formula.

    Args:
        input_dim: Integer, size of the vocabulary.
        output_dim: Integer, dimensionality `f` of the output space.
        embeddings_initializer: Initializer of the frozen table. Defaults to
            `"uniform"`.
        mask_zero: Boolean, whether id 0 is padding, to be masked. Defaults to
            `False`.
        embeddings_regularizer: Regularizer of the table, or `None`. Defaults to
            `None`.
        embeddings_constraint: Constraint of the table, or `None`. Defaults to
            `None`.
        weights: Array of shape `(input_dim, output_dim)`, the table, or `None`.
        rank_blocks: Integer, number of diagonal blocks `n`. It must divide
            `output_dim`. Defaults to 4.
        method: `"ether"` (`f` parameters), `"ether+"` (`2 f` parameters),
            `"oft"` or `"naive"`. Defaults to `"ether"`.
        side: `"output"` or `None`, which mean the same. Defaults to `None`.
        dropout: Float in `[0, 1)`. While training, each block is the identity
            with this probability. Defaults to 0.
        seed: Integer or `None`, for the random start and for dropout.
        strength: `None`, `"learned"` or a number in `(0, 1]`, see
            `keras_ether.apply`. Defaults to `None`.
        rate_multiplier: Float or `None`, the factor by which a learned strength
            multiplies the learning rate: `1,800 / N` suits a network of `N`
            such layers. `None`, the default, is 20 if the strength is learned.
        **kwargs: Further keyword arguments of `keras.layers.Embedding`,
            such as `name` and `dtype`.

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
    """The class of the layer without an adapter."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: np.ndarray | None = None,
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
            input_dim,
            output_dim,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            embeddings_constraint=embeddings_constraint,
            mask_zero=mask_zero,
            rank_blocks=rank_blocks,
            method=method,
            side=side,
            dropout=dropout,
            seed=seed,
            strength=strength,
            rate_multiplier=rate_multiplier,
            **kwargs,
        )
        # `Embedding` would build itself from `weights` before it has an
        # adapter.
        if weights is not None:
            self.build()
            self.base_kernel.assign(weights)
