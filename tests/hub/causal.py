"""Language models, mixtures of experts and recurrent ones among them."""

from tests.hub.entry import DECODER
from tests.hub.entry import HEADS
from tests.hub.entry import POSITIONS
from tests.hub.entry import Entry
from tests.hub.entry import tokens
from tests.hub.entry import without

GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2}
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


ENTRIES = {
    "BloomBackbone": Entry(DECODER | HEADS),
    "FalconBackbone": Entry(DECODER | {"num_attention_heads": 2}),
    "GPT2Backbone": Entry(DECODER | HEADS | POSITIONS, quick=True),
    "GPTNeoXBackbone": Entry(
        # A quarter of each head is rotated, an even number.
        DECODER | HEADS | POSITIONS | {"hidden_dim": 16}
    ),
    "GemmaBackbone": Entry(DECODER | GROUPED | {"head_dim": 4}),
    "GptOssBackbone": Entry(DECODER | GROUPED | EXPERTS),
    "Llama3Backbone": Entry(DECODER | GROUPED, quick=True),
    "LlamaBackbone": Entry(DECODER | GROUPED),
    "MistralBackbone": Entry(DECODER | GROUPED | {"sliding_window": 2}),
    "MixtralBackbone": Entry(DECODER | GROUPED | EXPERTS, quick=True),
    "OPTBackbone": Entry(DECODER | HEADS | POSITIONS),
    "Phi3Backbone": Entry(DECODER | GROUPED),
    "Qwen3Backbone": Entry(DECODER | GROUPED | {"head_dim": 4}),
    "Qwen3MoeBackbone": Entry(
        DECODER | GROUPED | EXPERTS | {"head_dim": 4, "moe_intermediate_dim": 8}
    ),
    "Qwen3_5Backbone": Entry(DECODER | GROUPED | GATED_DELTA),
    "Qwen3_5MoeBackbone": Entry(
        without(DECODER, "intermediate_dim")
        | GROUPED
        | GATED_DELTA
        | EXPERTS
        | {"moe_intermediate_dim": 8, "shared_expert_intermediate_size": 8},
        exclude=SINGLE_OUTPUT,
    ),
    "QwenBackbone": Entry(DECODER | GROUPED),
    "QwenMoeBackbone": Entry(
        DECODER
        | GROUPED
        | EXPERTS
        | {"moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 8},
        exclude=SINGLE_OUTPUT,
    ),
    "RWKV7Backbone": Entry(
        without(DECODER, "hidden_dim")
        | {
            "hidden_size": 8,
            "head_size": 4,
            "gate_lora": 4,
            "mv_lora": 4,
            "aaa_lora": 4,
            "decay_lora": 4,
        },
        # Lengths are multiples of 16.
        inputs=lambda: tokens(16),
    ),
    "SmolLM3Backbone": Entry(
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
}
