"""A tiny random causal language model of every architecture with an exporter.

KerasHub is asked which these are: a model that its exporter takes and that has
no entry here fails a test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras_hub
import numpy as np
from keras import ops

from tests.hub import multimodal
from tests.hub.causal import DECODER
from tests.hub.causal import GATED_DELTA
from tests.hub.causal import GROUPED
from tests.hub.causal import HEADS
from tests.hub.causal import POSITIONS
from tests.hub.entry import randomize
from tests.hub.entry import tokens

WIDE = DECODER | GROUPED | {"hidden_dim": 16, "intermediate_dim": 32}
GEMMA = WIDE | {"head_dim": 8, "num_key_value_heads": 2, "image_size": 16}
GEMMA3 = GEMMA | {
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "vision_encoder": None,
}
GEMMA4 = GEMMA | {"layer_types": ["full_attention"], "vision_encoder": None}


@dataclass(frozen=True)
class Exported:
    """One causal language model that KerasHub can export.

    Args:
        name: Name of the model class without `Backbone` or `CausalLM`.
        config: Function that gives the arguments of the backbone.
        inputs: Function that gives a batch of text.
        loader: Class of `transformers` that loads it.
        loose: Names of layers whose kernel is exported as a parameter of no
            layer, which LoRA can't adapt.
    """

    name: str
    config: Callable
    inputs: Callable = tokens
    loader: str = "AutoModelForCausalLM"
    loose: tuple[str, ...] = ()

    def task(self):
        backbone = getattr(keras_hub.models, f"{self.name}Backbone")
        task = getattr(keras_hub.models, f"{self.name}CausalLM")
        backbone = backbone(**self.config())
        return randomize(task(backbone=backbone, preprocessor=None))

    def load(self, folder):
        """The model that `transformers` reads."""
        import torch
        import transformers

        loader = getattr(transformers, self.loader)
        return loader.from_pretrained(folder, dtype=torch.float32)


def vision_encoder(name, **kwargs):
    return getattr(keras_hub.models, f"{name}VisionEncoder")(
        image_size=16,
        patch_size=4,
        pool_size=2,
        output_dim=16,
        **multimodal.LAYERS,
        **kwargs,
    )


def gemma3_with_images():
    return GEMMA3 | {"vision_encoder": vision_encoder("Gemma3")}


def gemma4_with_images():
    encoder = vision_encoder("Gemma4", head_dim=4, num_key_value_heads=2)
    more = {"vision_encoder": encoder, "hidden_size_per_layer_input": 8}
    return GEMMA4 | more


def positions():
    ids = tokens()["token_ids"]
    places = np.arange(ids.shape[1], dtype="int32")
    return {"position_ids": np.tile(places, (len(ids), 1))}


def text_without_images(inputs):
    """Inputs of a multimodal model in which no image takes a place."""
    taken = {k: np.zeros_like(v) for k, v in inputs.items() if "vision_" in k}
    return inputs | taken


MULTIMODAL = {"loader": "AutoModelForImageTextToText"}
EXPORTED = {
    "GPT2": Exported("GPT2", lambda: DECODER | HEADS | POSITIONS),
    # KerasHub exports the first of Gemma's keys and values only, and right only
    # if its heads are as wide together as the model.
    "Gemma": Exported(
        "Gemma",
        lambda: (
            WIDE
            | {"head_dim": 8, "num_query_heads": 2, "num_key_value_heads": 1}
        ),
    ),
    "Gemma3": Exported("Gemma3", lambda: GEMMA3),
    "Gemma3 with images": Exported(
        "Gemma3",
        gemma3_with_images,
        lambda: text_without_images(multimodal.gemma3_inputs()),
        loose=("vision_input_projection",),
        **MULTIMODAL,
    ),
    "Gemma4": Exported(
        "Gemma4", lambda: GEMMA4, lambda: tokens() | positions()
    ),
    "Gemma4 with images": Exported(
        "Gemma4",
        gemma4_with_images,
        lambda: text_without_images(multimodal.gemma4_inputs()),
        **MULTIMODAL,
    ),
    "Llama3": Exported("Llama3", lambda: WIDE),
    "Mistral": Exported("Mistral", lambda: WIDE | {"sliding_window": 4}),
    "Qwen": Exported("Qwen", lambda: WIDE),
    "Qwen3_5": Exported("Qwen3_5", lambda: WIDE | GATED_DELTA, **MULTIMODAL),
}


def keras_logits(task, x):
    outputs = task(x, training=False)
    return np.array(ops.convert_to_numpy(outputs))


def torch_logits(model, x):
    """The logits of a model of `transformers` or PEFT, text alone."""
    import torch

    ids = torch.tensor(x["token_ids"], dtype=torch.long)
    with torch.no_grad():
        return model(ids).logits.numpy()
