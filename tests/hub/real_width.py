"""Five models at their published widths, a layer or two of each.

What stands in a layer is built once and counted as often as the real model has
it, so that nothing has to hold gigabytes of random kernels.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import keras
import keras_hub

import keras_ether
from tests.hub import diffusion


@functools.lru_cache(maxsize=1)
def built(build):
    """The model, which a plan leaves as it is."""
    return build()


@dataclass(frozen=True)
class RealWidth:
    """A model that stands for a larger one.

    Args:
        build: Function that gives the model.
        times: How often the real model has what it has once, by regular
            expressions for layer paths; once where none fits.
        maps: `(d, f)` of all linear maps of the real model, from its paper.
        part: Regular expression for the paths that are adapted.
        cheap: Whether building it takes moments only.
    """

    build: Callable
    times: dict[str, int]
    maps: list[tuple[int, int]]
    part: str = ".*"
    cheap: bool = True

    def rows(self, method):
        """Pairs of a row of the plan and how often the real model has it."""
        report = keras_ether.plan(
            built(self.build),
            rank_blocks=2,
            method=method,
            targets=lambda path, layer: (
                isinstance(
                    layer, (keras.layers.Dense, keras.layers.EinsumDense)
                )
                and re.fullmatch(self.part, path)
            ),
            print_fn=str,
        )
        return [(row, self._times(row.path)) for row in report.rows]

    def _times(self, path):
        for pattern, times in self.times.items():
            if re.fullmatch(pattern, path):
                return times
        return 1


def formula(method, maps):
    """What the paper says of the count."""
    if method == "ether":
        return sum(d for d, _ in maps)
    return sum(2 * (d + f) for d, f in maps)


def gemma3_1b():
    return keras_hub.models.Gemma3Backbone(
        vocabulary_size=8,
        image_size=None,
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=1152,
        intermediate_dim=6912,
        head_dim=256,
        dtype="bfloat16",
    )


def llama3_8b():
    return keras_hub.models.Llama3Backbone(
        vocabulary_size=8,
        num_layers=1,
        num_query_heads=32,
        num_key_value_heads=8,
        hidden_dim=4096,
        intermediate_dim=14336,
        dtype="bfloat16",
    )


def deberta_v3_base():
    return keras_hub.models.DebertaV3Backbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=8,
        bucket_size=4,
    )


def vit_large():
    return keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=16,
        num_layers=1,
        num_heads=16,
        hidden_dim=1024,
        mlp_dim=4096,
    )


def stable_diffusion_3_medium():
    """Its diffusion transformer, between small encoders of the real widths."""
    config = diffusion.stable_diffusion_3() | {
        "mmdit_hidden_dim": 1536,
        "mmdit_num_heads": 24,
        "clip_l": diffusion.clip_text_encoder("clip_l", 768),
        "clip_g": diffusion.clip_text_encoder("clip_g", 1280),
    }
    return keras_hub.models.StableDiffusion3Backbone(**config, dtype="bfloat16")


def decoder(d, heads, key_value, intermediate):
    """Maps of a decoder layer: attention, then a gated feed-forward block."""
    attention = [(d, heads), (d, key_value), (d, key_value), (heads, d)]
    return [*attention, *[(d, intermediate)] * 2, (intermediate, d)]


def encoder(d, intermediate):
    return [(d, d)] * 4 + [(d, intermediate), (intermediate, d)]


def mmdit(d, layers, context, pooled, patch):
    """Maps of Stable Diffusion 3's transformer (Esser et al., 2024)."""
    mlp = [(d, 4 * d), (4 * d, d)]
    stream = [(d, 6 * d), (d, 3 * d), (d, d), *mlp]
    # The last layer has no use for the text that it would give.
    last = [*stream, (d, 2 * d), (d, 3 * d)]
    embeddings = [(context, d), (pooled, d), (d, d), (256, d), (d, d)]
    end = [(d, 2 * d), (d, patch)]
    return [*embeddings, *stream * 2 * (layers - 1), *last, *end]


ENTRIES = {
    "Gemma 3 1B": RealWidth(
        build=gemma3_1b,
        times={"decoder_block_0/.*": 26},
        maps=decoder(1152, 4 * 256, 256, 6912) * 26,
    ),
    "Llama 3 8B": RealWidth(
        build=llama3_8b,
        times={"transformer_layer_0/.*": 32},
        maps=decoder(4096, 4096, 8 * 128, 14336) * 32,
        cheap=False,
    ),
    "DeBERTaV3-base": RealWidth(
        build=deberta_v3_base,
        times={"disentangled_attention_encoder_layer_0/.*": 12},
        maps=encoder(768, 3072) * 12,
    ),
    "ViT-large": RealWidth(
        build=vit_large,
        times={".*/transformer_block_1/.*": 24},
        maps=encoder(1024, 4096) * 24,
    ),
    "Stable Diffusion 3 medium": RealWidth(
        build=stable_diffusion_3_medium,
        times={".*/joint_block_0/.*": 23},
        maps=mmdit(1536, 24, context=4096, pooled=768 + 1280, patch=2 * 2 * 16),
        part="(.*/)?diffuser/.*",
        cheap=False,
    ),
}
