"""The training that all runs have in common, whatever the task."""

import math
import re

import keras
import numpy as np

import keras_ether
from keras_ether.surgery.layer_tree import LayerTree


def choose(arrays, samples, seed):
    """The rows that a run trains on.

    Args:
        arrays: Arrays of equally many rows, in tuples or dictionaries.
        samples: Integer, how many rows; 0 for all.
        seed: Integer, the run's.

    Returns:
        The same structure, of the rows that were drawn.
    """
    rng = np.random.default_rng(seed)
    rows = len(keras.tree.flatten(arrays)[0])
    chosen = rng.permutation(rows)[: samples or None]
    return keras.tree.map_structure(lambda array: array[chosen], arrays)


def optimizer(model, settings, steps):
    """Adam: one rate for the head, one for all else."""

    def adam(rate):
        if settings["schedule"] == "linear":
            rate = keras.optimizers.schedules.PolynomialDecay(
                rate, steps, end_learning_rate=0.0
            )
        return keras.optimizers.Adam(rate)

    rate, head_rate = settings["learning_rate"], settings["head_rate"]
    if head_rate in (None, rate):
        return adam(rate)
    backbone = {id(w) for w in model.backbone.weights}
    paths = [
        re.escape(weight.path)
        for weight in model.trainable_weights
        if id(weight) not in backbone
    ]
    head = "|".join(paths)
    optimizers = keras.optimizers.OptimizerMap(
        adam(rate), {head: adam(head_rate)}
    )
    return keras.optimizers.MultiOptimizer(optimizers)


def fit(model, batches, settings, loss):
    """Trains, and returns the mean loss of the last epoch.

    Args:
        model: Keras model. It is compiled.
        batches: A `Batches`, whose items are arguments of `train_on_batch`.
        settings: Dictionary, the run's.
        loss: Keras loss.

    Returns:
        The mean loss of the last epoch, `None` where it ran away, which ends
        the training.
    """
    steps = len(batches) * settings["epochs"]
    model.compile(
        optimizer=optimizer(model, settings, steps),
        loss=loss,
        weighted_metrics=None,
    )
    # Not `fit`: KerasHub's wants a `tf.data.Dataset`.
    losses = []
    for _ in range(settings["epochs"]):
        losses = []
        for index in range(len(batches)):
            logs = model.train_on_batch(*batches[index], return_dict=True)
            losses.append(float(logs["loss"]))
            if not math.isfinite(losses[-1]):
                return None
        batches.shuffle()
    return float(np.mean(losses))


def trainable(model):
    """The count of a model's trained parameters."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def merge(model):
    """Merges adapters: a batch then costs no reflection."""
    if LayerTree(model).adapted:
        keras_ether.merge(model)


def finite(measured):
    """What was measured, with `None` for what is no finite number."""
    return {
        key: None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in measured.items()
    }
