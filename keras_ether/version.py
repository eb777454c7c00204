"""The versions of this package and of the packages that it runs with."""

import importlib.metadata

import keras
import numpy as np

__version__ = "0.1.0"


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
        # TensorFlow is distributed under several names.
        found[backend] = "unknown"
    return found
