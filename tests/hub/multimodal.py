"""Text with images or sound."""

import keras_hub
import numpy as np

# Not among KerasHub's public names, and nothing else makes a tiny one.
from keras_hub.src.models.gemma3n.gemma3n_audio_encoder import (
    Gemma3nAudioEncoder,
)

from tests.hub import entry
from tests.hub import vision
from tests.hub.entry import ENCODER
from tests.hub.entry import LENGTH
from tests.hub.entry import VOCABULARY
from tests.hub.entry import Entry
from tests.hub.entry import images
from tests.hub.entry import mask
from tests.hub.entry import numbers
from tests.hub.entry import token_ids
from tests.hub.entry import tokens
from tests.hub.entry import without

LAYERS = without(ENCODER, "vocabulary_size")
DECODER = entry.DECODER | {
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "image_size": 16,
}
IMAGE_TOKENS = 4
# Gemma3n puts an image or a sound where it finds these.
IMAGE_TOKEN, AUDIO_TOKEN = 18, 19


def two_towers(family):
    """The encoders of CLIP and its kin."""
    return {
        "vision_encoder": getattr(keras_hub.models, f"{family}VisionEncoder")(
            patch_size=8,
            image_shape=(16, 16, 3),
            name="vision_encoder",
            **LAYERS,
        ),
        "text_encoder": getattr(keras_hub.models, f"{family}TextEncoder")(
            vocabulary_size=VOCABULARY,
            embedding_dim=8,
            max_sequence_length=LENGTH,
            name="text_encoder",
            **LAYERS,
        ),
    }


def image_and_text(end=VOCABULARY - 1):
    """An image and a text with the token whose state stands for the text."""
    ids = token_ids()
    ids[:, -1] = end
    return {"images": images(16), "token_ids": ids}


def clip(family="CLIP"):
    return two_towers(family) | {"projection_dim": 8}


def blip2():
    queries = {"num_query_tokens": 2}
    return {
        "vision_encoder": keras_hub.models.BLIP2VisionEncoder(
            image_size=16,
            patch_size=8,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
            **LAYERS,
        ),
        "qformer": keras_hub.models.BLIP2QFormer(
            vision_dim=8,
            cross_attention_frequency=1,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
            **queries,
            **LAYERS,
        ),
        "language_model": keras_hub.models.BLIP2CustomOPT(
            vocabulary_size=VOCABULARY,
            qformer_hidden_dim=8,
            max_sequence_length=10,
            dropout=0.0,
            **queries,
            **LAYERS,
        ),
    }


def gemma3():
    return DECODER | {
        "vision_encoder": keras_hub.models.Gemma3VisionEncoder(
            image_size=16, patch_size=4, pool_size=2, output_dim=8, **LAYERS
        )
    }


def gemma4():
    return DECODER | {
        "vision_encoder": keras_hub.models.Gemma4VisionEncoder(
            image_size=16,
            patch_size=4,
            pool_size=2,
            head_dim=4,
            num_key_value_heads=2,
            output_dim=8,
            **LAYERS,
        ),
        "hidden_size_per_layer_input": 4,
    }


def image_tokens():
    """Eight tokens of text, four of which an image takes the place of."""
    where = np.arange(1, 1 + IMAGE_TOKENS)
    taken = np.zeros((2, 8), "int32")
    taken[:, where] = 1
    return tokens(8) | {
        "vision_indices": np.tile(where, (2, 1)).astype("int32"),
        "vision_mask": taken,
    }


def gemma3_inputs():
    return image_tokens() | {"images": images(16)[:, None]}


def gemma4_inputs():
    return image_tokens() | {
        "pixel_values": numbers(1, 16, 3 * 4 * 4),
        "pixel_position_ids": np.ones((2, 1, 16, 2), "int32"),
        "position_ids": np.tile(np.arange(8, dtype="int32"), (2, 1)),
    }


def gemma3n():
    image_encoder = keras_hub.models.MobileNetV5Backbone(
        **vision.mobile_net_v5(blocks=("er",))
    )
    audio_encoder = Gemma3nAudioEncoder(
        hidden_size=8,
        input_feat_size=16,
        sscp_conv_channel_size=[2, 4],
        sscp_conv_kernel_size=[(1, 1), (1, 1)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1.0,
        residual_weight=0.5,
        num_attention_heads=2,
        attention_chunk_size=2,
        num_attention_context_right=1,
        num_attention_context_left=1,
        attention_logit_cap=50.0,
        conv_kernel_size=3,
        reduction_factor=1,
    )
    return {
        "text_vocab_size": VOCABULARY,
        "text_hidden_size": 8,
        "num_hidden_layers": 1,
        "pad_token_id": 0,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "intermediate_size": [16],
        "hidden_activation": "gelu_approximate",
        "layer_types": ["full_attention"],
        "sliding_window": 4,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8,
        "vocab_size_per_layer_input": 10,
        "hidden_size_per_layer_input": 4,
        "altup_num_inputs": 4,
        "laurel_rank": 4,
        "vision_encoder_config": image_encoder.get_config(),
        "vision_hidden_size": 16,
        "audio_encoder_config": audio_encoder.get_config(),
        "audio_hidden_size": 8,
        "image_token_id": IMAGE_TOKEN,
        "audio_token_id": AUDIO_TOKEN,
    }


def gemma3n_inputs():
    ids = token_ids(8)
    ids[:, 1:4], ids[:, 4:6] = IMAGE_TOKEN, AUDIO_TOKEN
    return {
        "token_ids": ids,
        "padding_mask": mask(8, "bool"),
        "images": images(32)[:, None],
        "input_features": numbers(1, 8, 16),
        "input_features_mask": np.zeros((2, 1, 8), "bool"),
    }


def pali_gemma():
    vision_part = {f"vit_{name}": value for name, value in LAYERS.items()}
    return DECODER | vision_part | {"vit_patch_size": 8}


def pali_gemma_inputs():
    return image_and_text() | {
        "padding_mask": mask(),
        "response_mask": np.zeros((2, LENGTH), "int32"),
    }


def par_seq():
    return {
        "image_encoder": keras_hub.models.ViTBackbone(
            image_shape=(16, 32, 3),
            patch_size=(8, 8),
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
            use_class_token=False,
            name="image_encoder",
        ),
        "vocabulary_size": VOCABULARY,
        "max_label_length": LENGTH,
        "decoder_hidden_dim": 8,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 16,
    }


ENTRIES = {
    "BLIP2Backbone": Entry(
        blip2, lambda: image_and_text() | {"padding_mask": mask(dtype="bool")}
    ),
    "CLIPBackbone": Entry(clip, image_and_text, quick=True),
    "Gemma3Backbone": Entry(gemma3, gemma3_inputs, quick=True),
    "Gemma3nBackbone": Entry(gemma3n, gemma3n_inputs),
    "Gemma4Backbone": Entry(gemma4, gemma4_inputs),
    "MetaCLIP2Backbone": Entry(
        lambda: clip("MetaCLIP2"), lambda: image_and_text(end=2)
    ),
    "PARSeqBackbone": Entry(
        par_seq, lambda: {"images": images(16, 32)} | tokens()
    ),
    "PaliGemmaBackbone": Entry(pali_gemma, pali_gemma_inputs),
    "SigLIPBackbone": Entry(lambda: two_towers("SigLIP"), image_and_text),
}
