"""Saves models in every way and loads them again, by Keras's own means."""

from pathlib import Path

import keras
import keras_hub
import numpy as np


def shard_of(model):
    """Size in GB of shards that hold little more than the largest weight."""
    largest = max(np.prod(variable.shape) for variable in model.weights)
    return 1.2 * 4 * float(largest) / 1024**3


def save(model, how, folder):
    """Saves a model; returns the path."""
    if how == "keras":
        model.save(folder / "model.keras")
        return folder / "model.keras"
    if how == "weights":
        model.save_weights(folder / "model.weights.h5")
        return folder / "model.weights.h5"
    if how == "sharded":
        model.save_weights(
            folder / "model.weights.json", max_shard_size=shard_of(model)
        )
        assert len(list(folder.glob("model_*.weights.h5"))) > 1
        return folder / "model.weights.json"
    model.save_to_preset(folder / "preset", max_shard_size=shard_of(model))
    assert len(list(folder.glob("preset/model_*.weights.h5"))) > 1
    return folder / "preset"


def load_plain(how, path, make):
    """A plain model from a file; `make` builds one to be filled."""
    if how == "keras":
        return keras.saving.load_model(path)
    if how == "preset":
        return keras_hub.models.TextClassifier.from_preset(str(path))
    model = make()
    model.load_weights(path)
    return model


def load_into(model, how, path):
    """Fills a model from a file."""
    if how == "preset":
        model.load_task_weights(str(Path(path) / "task.weights.h5"))
        model.backbone.load_weights(Path(path) / "model.weights.json")
    else:
        model.load_weights(path)


def call(model, x):
    outputs = model(x, training=False)
    return np.array(keras.ops.convert_to_numpy(outputs))
