"""The versions of the packages that a file was written with."""

import importlib.metadata

import keras
import numpy as np

from keras_ether.version import __version__


def of_packages() -> dict[str, str]:
    """Version by package: this one, Keras, NumPy and the backend."""
    backend = keras.backend.backend()
    found = {
        "keras_ether": __version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "backend": backend,
    }
    try:
        found[backend] = importlib.metadata.version(backend)
    except importlib.metadata.PackageNotFoundError:
        # TensorFlow goes by several names.
        found[backend] = "unknown"
    return found
