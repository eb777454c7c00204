"""Encoders of text."""

import numpy as np

from tests.hub.entry import ENCODER
from tests.hub.entry import LENGTH
from tests.hub.entry import POSITIONS
from tests.hub.entry import VOCABULARY
from tests.hub.entry import Entry
from tests.hub.entry import segments
from tests.hub.entry import token_ids
from tests.hub.entry import without


def without_mask():
    return {
        "token_ids": token_ids(),
        "segment_ids": np.zeros((2, LENGTH), "int32"),
    }


ENTRIES = {
    "AlbertBackbone": Entry(
        ENCODER
        | POSITIONS
        | {"num_groups": 1, "num_inner_repetitions": 1, "embedding_dim": 4},
        inputs=segments,
    ),
    "BertBackbone": Entry(ENCODER | POSITIONS, inputs=segments, quick=True),
    "DebertaV3Backbone": Entry(
        ENCODER | POSITIONS | {"bucket_size": 4}, quick=True
    ),
    "DistilBertBackbone": Entry(ENCODER | POSITIONS),
    "ElectraBackbone": Entry(
        without(ENCODER, "vocabulary_size")
        | POSITIONS
        | {"vocab_size": VOCABULARY, "embedding_dim": 8},
        inputs=segments,
    ),
    "ESMBackbone": Entry(ENCODER, inputs=lambda: {"token_ids": token_ids()}),
    "FNetBackbone": Entry(
        without(ENCODER, "num_heads") | POSITIONS, inputs=without_mask
    ),
    "RobertaBackbone": Entry(ENCODER | POSITIONS),
    "RoformerV2Backbone": Entry(
        ENCODER | {"head_size": 4}, inputs=without_mask
    ),
    "XLMRobertaBackbone": Entry(ENCODER | POSITIONS),
    "XLNetBackbone": Entry(ENCODER, inputs=segments),
}
