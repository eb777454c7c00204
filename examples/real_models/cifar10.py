"""CIFAR-10's 10,000 test pictures, for demonstrations (see `bigbench`)."""

import base64
import io
from pathlib import Path

import numpy as np

from . import bigbench
from . import packages

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

    pictures, classes = [], []
    for text, answer in bigbench.examples(bigbench.CIFAR10):
        png = io.BytesIO(base64.b64decode(text))
        pictures.append(np.asarray(Image.open(png).convert("RGB")))
        classes.append(CLASSES.index(answer))
    np.savez_compressed(
        folder / "pictures.npz",
        pictures=np.stack(pictures),
        classes=np.array(classes, dtype="int32"),
    )
