"""Encoder-decoders of text, and of speech to text."""

import numpy as np

from tests.hub.entry import ENCODER
from tests.hub.entry import LENGTH
from tests.hub.entry import POSITIONS
from tests.hub.entry import VOCABULARY
from tests.hub.entry import Entry
from tests.hub.entry import mask
from tests.hub.entry import numbers
from tests.hub.entry import token_ids
from tests.hub.entry import token_pairs


def t5_gemma():
    side = {
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "num_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "layer_types": ["full_attention"],
    }
    return {
        "vocabulary_size": VOCABULARY,
        "dropout_rate": 0.1,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 1.0,
        "attention_bias": False,
        "hidden_activation": "gelu_approximate",
        "cross_attention_hidden_size": 8,
        "sliding_window": 4,
        **{f"encoder_{key}": value for key, value in side.items()},
        **{f"decoder_{key}": value for key, value in side.items()},
    }


ED_REC = {
    "vocab_size": VOCABULARY,
    "num_layers_enc": 1,
    "num_layers_dec": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
MOONSHINE = {
    "vocabulary_size": VOCABULARY,
    "filter_dim": 16,
    "encoder_num_layers": 1,
    "decoder_num_layers": 1,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "encoder_num_heads": 2,
    "decoder_num_heads": 2,
}


def waveform_and_tokens():
    return {
        "encoder_input_values": numbers(2000, 1),
        "encoder_padding_mask": np.ones((2, 2000), "bool"),
        "decoder_token_ids": token_ids(),
        "decoder_padding_mask": mask(dtype="bool"),
    }


WHISPER = ENCODER | {
    "max_encoder_sequence_length": 8,
    "max_decoder_sequence_length": LENGTH,
}


def spectrogram_and_tokens():
    return {
        "encoder_features": numbers(8, 80),
        "decoder_token_ids": token_ids(),
        "decoder_padding_mask": mask(),
    }


ENTRIES = {
    "BartBackbone": Entry(ENCODER | POSITIONS, token_pairs, quick=True),
    "EdRecBackbone": Entry(ED_REC, token_pairs),
    "MoonshineBackbone": Entry(MOONSHINE, waveform_and_tokens),
    "T5Backbone": Entry(ENCODER, token_pairs, quick=True),
    "T5Gemma2Backbone": Entry(t5_gemma(), token_pairs),
    "T5GemmaBackbone": Entry(t5_gemma(), token_pairs),
    "WhisperBackbone": Entry(WHISPER, spectrogram_and_tokens, quick=True),
}
