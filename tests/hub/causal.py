"""Language models, mixtures of experts and recurrent ones among them."""

from tests.hub.entry import LENGTH
from tests.hub.entry import VOCABULARY
from tests.hub.entry import Entry
from tests.hub.entry import tokens

DECODER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 1,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
HEADS = {"num_heads": 2}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
POSITIONS = {"max_sequence_length": LENGTH}
EXPERTS = {"num_experts": 4, "top_k": 2}
GATED_DELTA = {
    "num_layers": 2,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
# One output is one block.
SINGLE_OUTPUT = ".*/shared_expert_gate(_dense)?"


def without(config, *names):
    return {key: value for key, value in config.items() if key not in names}


ENTRIES = {
    "BloomBackbone": Entry(config=lambda: DECODER | HEADS, inputs=tokens),
    "FalconBackbone": Entry(
        config=lambda: DECODER | {"num_attention_heads": 2}, inputs=tokens
    ),
    "GPT2Backbone": Entry(
        config=lambda: DECODER | HEADS | POSITIONS, inputs=tokens, quick=True
    ),
    "GPTNeoXBackbone": Entry(
        # A quarter of each head is rotated, an even number.
        config=lambda: DECODER | HEADS | POSITIONS | {"hidden_dim": 16},
        inputs=tokens,
    ),
    "GemmaBackbone": Entry(
        config=lambda: DECODER | GROUPED | {"head_dim": 4}, inputs=tokens
    ),
    "GptOssBackbone": Entry(
        config=lambda: DECODER | GROUPED | EXPERTS, inputs=tokens
    ),
    "Llama3Backbone": Entry(
        config=lambda: DECODER | GROUPED, inputs=tokens, quick=True
    ),
    "LlamaBackbone": Entry(config=lambda: DECODER | GROUPED, inputs=tokens),
    "MistralBackbone": Entry(
        config=lambda: DECODER | GROUPED | {"sliding_window": 2}, inputs=tokens
    ),
    "MixtralBackbone": Entry(
        config=lambda: DECODER | GROUPED | EXPERTS, inputs=tokens, quick=True
    ),
    "OPTBackbone": Entry(
        config=lambda: DECODER | HEADS | POSITIONS, inputs=tokens
    ),
    "Phi3Backbone": Entry(config=lambda: DECODER | GROUPED, inputs=tokens),
    "Qwen3Backbone": Entry(
        config=lambda: DECODER | GROUPED | {"head_dim": 4}, inputs=tokens
    ),
    "Qwen3MoeBackbone": Entry(
        config=lambda: (
            DECODER
            | GROUPED
            | EXPERTS
            | {"head_dim": 4, "moe_intermediate_dim": 8}
        ),
        inputs=tokens,
    ),
    "Qwen3_5Backbone": Entry(
        config=lambda: DECODER | GROUPED | GATED_DELTA, inputs=tokens
    ),
    "Qwen3_5MoeBackbone": Entry(
        config=lambda: (
            without(DECODER, "intermediate_dim")
            | GROUPED
            | GATED_DELTA
            | EXPERTS
            | {
                "moe_intermediate_dim": 8,
                "shared_expert_intermediate_size": 8,
            }
        ),
        inputs=tokens,
        exclude=SINGLE_OUTPUT,
    ),
    "QwenBackbone": Entry(config=lambda: DECODER | GROUPED, inputs=tokens),
    "QwenMoeBackbone": Entry(
        config=lambda: (
            DECODER
            | GROUPED
            | EXPERTS
            | {
                "moe_intermediate_dim": 8,
                "shared_expert_intermediate_dim": 8,
            }
        ),
        inputs=tokens,
        exclude=SINGLE_OUTPUT,
    ),
    "RWKV7Backbone": Entry(
        config=lambda: (
            without(DECODER, "hidden_dim")
            | {
                "hidden_size": 8,
                "head_size": 4,
                "gate_lora": 4,
                "mv_lora": 4,
                "aaa_lora": 4,
                "decay_lora": 4,
            }
        ),
        # Lengths are multiples of 16.
        inputs=lambda: tokens(16),
    ),
    "SmolLM3Backbone": Entry(
        config=lambda: (
            DECODER
            | {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "attention_bias": False,
                "attention_dropout": 0.0,
                "rope_layer_enabled_list": [True],
                "layer_types": ["attention"],
                "mlp_bias": False,
                "layer_norm_epsilon": 1e-5,
                "max_position_embeddings": 16,
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            }
        ),
        inputs=tokens,
    ),
}
