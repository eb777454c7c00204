"""The models that are timed, with random weights, and batches for them."""

import warnings

import keras
import keras_hub
import numpy as np


def minilm(batch=8, length=128):
    """The size of all-MiniLM-L6-v2: 22.7 M numbers, 36 linear maps."""
    return _bert(batch, length, 30522, layers=6, heads=12, width=384)


def bert_base(batch=8, length=128):
    """BERT-base: 109 M numbers, 72 linear maps."""
    return _bert(batch, length, 30522, layers=12, heads=12, width=768)


def decoder(batch=4, length=256):
    """A Llama 3 of 25 M numbers with grouped queries, 42 linear maps."""
    keras.utils.set_random_seed(0)
    vocabulary = 4096
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=vocabulary,
        num_layers=6,
        num_query_heads=8,
        num_key_value_heads=4,
        hidden_dim=512,
        intermediate_dim=1408,
    )
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    tokens = np.random.default_rng(0).integers(
        0, vocabulary, (batch, length), dtype="int32"
    )
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    return model, inputs, np.roll(tokens, -1, axis=1)


def quantized_decoder(mode):
    """The decoder, whose kernels and embeddings are rounded to integers."""
    model, *batch = decoder()
    with warnings.catch_warnings():
        # Keras names each kind of layer that has nothing to round.
        warnings.simplefilter("ignore")
        model.backbone.quantize(mode)
    return model, *batch


def _bert(batch, length, vocabulary, layers, heads, width):
    keras.utils.set_random_seed(0)
    # Drawing random numbers for dropout takes time of its own, and would make
    # every ratio look better than it is.
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        dropout=0.0,
        max_sequence_length=length,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None, dropout=0.0
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (batch, length), dtype="int32")
    inputs = {
        "token_ids": tokens,
        "padding_mask": np.ones_like(tokens),
        "segment_ids": np.zeros_like(tokens),
    }
    return model, inputs, rng.integers(0, 2, batch, dtype="int32")
