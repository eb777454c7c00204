"""Text to image."""

import keras_hub
import numpy as np

# Not among KerasHub's public names, and nothing else makes a tiny one.
from keras_hub.src.models.vae.vae_backbone import VAEBackbone

from tests.hub.entry import Entry
from tests.hub.entry import images
from tests.hub.entry import numbers
from tests.hub.entry import token_ids


def clip_text_encoder(name, hidden_dim=8):
    return keras_hub.models.CLIPTextEncoder(
        vocabulary_size=20,
        embedding_dim=hidden_dim,
        hidden_dim=hidden_dim,
        num_layers=2,
        num_heads=2,
        intermediate_dim=16,
        # The last layer but one, as in the real model.
        intermediate_output_index=-2,
        name=name,
    )


def stable_diffusion_3():
    return {
        "mmdit_patch_size": 2,
        "mmdit_hidden_dim": 16,
        "mmdit_num_layers": 2,
        "mmdit_num_heads": 2,
        "mmdit_position_size": 8,
        "mmdit_qk_norm": None,
        "mmdit_dual_attention_indices": None,
        # `mode` makes the outputs deterministic, and 32 channels are what its
        # group normalization divides.
        "vae": VAEBackbone(
            [32], [1], [32], [1], sampler_method="mode", name="vae"
        ),
        "clip_l": clip_text_encoder("clip_l"),
        "clip_g": clip_text_encoder("clip_g"),
        "image_shape": (32, 32, 3),
    }


def stable_diffusion_3_inputs():
    ids = token_ids(5)
    return {
        "images": images(32),
        "latents": numbers(4, 4, 16),
        "clip_l_token_ids": ids,
        "clip_l_negative_token_ids": np.zeros_like(ids),
        "clip_g_token_ids": ids,
        "clip_g_negative_token_ids": np.zeros_like(ids),
        "num_steps": np.full(2, 2, "int32"),
        "guidance_scale": np.full(2, 7.0, "float32"),
    }


FLUX = {
    "input_channels": 8,
    "hidden_size": 16,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 2, 2],
    "theta": 10_000,
    "use_bias": True,
    "guidance_embed": True,
    "image_shape": (4, 8),
    "text_shape": (6, 8),
    "image_ids_shape": (4, 3),
    "text_ids_shape": (6, 3),
    "y_shape": (8,),
}


def flux_inputs():
    return {
        "image": numbers(4, 8),
        "image_ids": numbers(4, 3),
        "text": numbers(6, 8),
        "text_ids": numbers(6, 3),
        "y": numbers(8),
        "timesteps": numbers(),
        "guidance": numbers(),
    }


ENTRIES = {
    "FluxBackbone": Entry(FLUX, flux_inputs),
    "StableDiffusion3Backbone": Entry(
        stable_diffusion_3,
        stable_diffusion_3_inputs,
        # It makes a schedule of `num_steps` steps.
        eager=True,
        quick=True,
    ),
}
