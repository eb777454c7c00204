"""Encoders of text."""

import numpy as np

from tests.hub.entry import LENGTH
from tests.hub.entry import VOCABULARY
from tests.hub.entry import Entry
from tests.hub.entry import segments
from tests.hub.entry import token_ids
from tests.hub.entry import tokens

ENCODER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
POSITIONS = {"max_sequence_length": LENGTH}


def without_mask():
    return {
        "token_ids": token_ids(),
        "segment_ids": np.zeros((2, LENGTH), "int32"),
    }


def electra():
    config = ENCODER | POSITIONS | {"vocab_size": VOCABULARY}
    del config["vocabulary_size"]
    return config | {"embedding_dim": 8}


def f_net():
    config = ENCODER | POSITIONS
    del config["num_heads"]
    return config


ENTRIES = {
    "AlbertBackbone": Entry(
        config=lambda: (
            ENCODER
            | POSITIONS
            | {
                "num_groups": 1,
                "num_inner_repetitions": 1,
                "embedding_dim": 4,
            }
        ),
        inputs=segments,
    ),
    "BertBackbone": Entry(
        config=lambda: ENCODER | POSITIONS, inputs=segments, quick=True
    ),
    "DebertaV3Backbone": Entry(
        config=lambda: ENCODER | POSITIONS | {"bucket_size": 4},
        inputs=tokens,
        quick=True,
    ),
    "DistilBertBackbone": Entry(
        config=lambda: ENCODER | POSITIONS, inputs=tokens
    ),
    "ElectraBackbone": Entry(config=electra, inputs=segments),
    "ESMBackbone": Entry(
        config=lambda: ENCODER, inputs=lambda: {"token_ids": token_ids()}
    ),
    "FNetBackbone": Entry(config=f_net, inputs=without_mask),
    "RobertaBackbone": Entry(config=lambda: ENCODER | POSITIONS, inputs=tokens),
    "RoformerV2Backbone": Entry(
        config=lambda: ENCODER | {"head_size": 4}, inputs=without_mask
    ),
    "XLMRobertaBackbone": Entry(
        config=lambda: ENCODER | POSITIONS, inputs=tokens
    ),
    "XLNetBackbone": Entry(config=lambda: ENCODER, inputs=segments),
}
