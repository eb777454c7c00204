"""A tiny random model of every backbone that KerasHub exports."""

import inspect

import keras_hub

from tests.hub import causal
from tests.hub import dense_vision
from tests.hub import diffusion
from tests.hub import multimodal
from tests.hub import seq2seq
from tests.hub import text
from tests.hub import vision

ENTRIES = dict(
    sorted(
        (
            text.ENTRIES
            | causal.ENTRIES
            | seq2seq.ENTRIES
            | vision.ENTRIES
            | dense_vision.ENTRIES
            | multimodal.ENTRIES
            | diffusion.ENTRIES
        ).items()
    )
)

# What the others derive from: no architectures of their own.
ABSTRACT = {"Backbone", "FeaturePyramidBackbone"}


def exported() -> set[str]:
    """Names of the backbone classes, each once under the class's own name."""
    public = vars(keras_hub.models).values()
    classes = {c.__name__ for c in public if inspect.isclass(c)}
    return {c for c in classes if c.endswith("Backbone")} - ABSTRACT
