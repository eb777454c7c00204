"""CIFAR-10's 10,000 test pictures, for demonstrations.

BIG-bench carries them, and asks that its data be no part of what a published
model is trained on: what an example learns from them is thrown away, and none
of its figures is a result on CIFAR-10.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np

from . import packages

_FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification"
PACKAGE = packages.Package(
    name="bigbench",
    version="1.0.0",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    licence="Apache-2.0 (BIG-bench); CIFAR-10 states none",
    megabytes=358,
    files=(f"{_FOLDER}/base64/task.json",),
)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pictures of shape `(10000, 32, 32, 3)`, bytes, and their classes."""
    folder = packages.made_once(packages.cache() / "cifar10-test", _make)
    with np.load(folder / "pictures.npz") as arrays:
        return arrays["pictures"], arrays["classes"]


def _make(folder: Path) -> None:
    from PIL import Image

    path = packages.fetch(PACKAGE) / PACKAGE.files[0]
    pictures, classes = [], []
    for example in json.loads(path.read_text("utf-8"))["examples"]:
        png = base64.b64decode(example["input"])
        pictures.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))
        scores = example["target_scores"]
        classes.append(CLASSES.index(max(scores, key=scores.get)))
    np.savez_compressed(
        folder / "pictures.npz",
        pictures=np.stack(pictures),
        classes=np.array(classes, dtype="int32"),
    )
