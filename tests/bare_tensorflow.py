"""A process with TensorFlow and without Keras, which serves SavedModels.

It takes folders. In each, it feeds `inputs.npz` to `saved_model` and writes
what comes out to `outputs.npy`.
"""

# ruff: noqa: E402

import sys
from pathlib import Path

# TensorFlow would import Keras where it is installed.
sys.modules.update(keras=None, keras_ether=None)

import numpy as np
import tensorflow as tf

for folder in map(Path, sys.argv[1:]):
    x = {
        name: tf.constant(array)
        for name, array in np.load(folder / "inputs.npz").items()
    }
    loaded = tf.saved_model.load(folder / "saved_model")
    outputs = loaded.serve(x["x"] if set(x) == {"x"} else x)
    np.save(folder / "outputs.npy", outputs.numpy())
