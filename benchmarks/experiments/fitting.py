"""The training that all runs have in common, whatever the task."""

import math

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


def fit(model, batches, settings, loss, evaluate):
    """Trains by Adam, with a rate that falls linearly to zero.

    Args:
        model: Keras model. It is compiled.
        batches: A `Batches`, whose items are arguments of `train_on_batch`.
        settings: Dictionary, the run's.
        loss: Keras loss.
        evaluate: Function of the model that gives a number by which rates are
            chosen.

    Returns:
        Dictionary of the mean `loss` of the last epoch, `None` where it ran
        away, which ends the training; and `dev_by_epoch`, what `evaluate` gave
        after each epoch but the last.
    """
    steps = len(batches) * settings["epochs"]
    rate = keras.optimizers.schedules.PolynomialDecay(
        settings["learning_rate"], steps, end_learning_rate=0.0
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate), loss=loss, weighted_metrics=None
    )
    # Not `fit`: KerasHub's wants a `tf.data.Dataset`.
    evaluated = []
    for epoch in range(settings["epochs"]):
        if epoch:
            evaluated.append(evaluate(model))
        losses = []
        for index in range(len(batches)):
            logs = model.train_on_batch(*batches[index], return_dict=True)
            losses.append(float(logs["loss"]))
            if not math.isfinite(losses[-1]):
                return {"loss": None, "dev_by_epoch": evaluated}
        batches.shuffle()
    return {"loss": float(np.mean(losses)), "dev_by_epoch": evaluated}


def trainable(model):
    """The count of a model's trained parameters."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def merge(model):
    """Merges adapters: a batch then costs no reflection, nor OFT's solution."""
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
