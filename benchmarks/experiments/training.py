"""One run of a classifier: fine-tune, test, measure how the kernels moved."""

import time

import keras
import numpy as np
from keras import ops

from benchmarks.experiments import data as data_lib
from benchmarks.experiments import datasets
from benchmarks.experiments import fitting
from benchmarks.experiments.models import Base
from keras_ether.adapters import kinds
from keras_ether.diagnostics import diagnosis
from keras_ether.diagnostics import hyperspherical_energy
from keras_ether.diagnostics import kernel_distance
from keras_ether.surgery.layer_tree import LayerTree

EVALUATION_BATCH = 64
PERTURBATION = ("kernel_distance", "energy_change", "block_distance")
RETENTION = ("match_accuracy", "rank_correlation")


def settings(options):
    """What decides the outcome of a run, besides what all tasks have."""
    return {
        "data": datasets.name(options),
        "preset": options.preset,
        "pairs": options.pairs,
    }


def trainer(options):
    """A `Trainer`, as the command line asks for it."""
    base = Base(options.preset, options.length)
    data = data_lib.load(options, base.preprocessor)
    return Trainer(base, data, options.only_accuracy)


class Trainer:
    """Runs on one base and one set of data.

    Args:
        base: A `Base`.
        data: A `Data`.
        only_accuracy: Whether distances, energies and what is left of the
            base's own task are not measured, a quarter of a run's time.
    """

    def __init__(self, base, data, only_accuracy=False):
        self.base, self.data = base, data
        self.only_accuracy = only_accuracy
        if only_accuracy:
            return
        model = self.base.classifier("base", 1, 0, data.classes)
        layers = linear_maps(model)
        self.kernels = {p: _numpy(layer.kernel) for p, layer in layers.items()}
        self.energies = {p: _energy(layer) for p, layer in layers.items()}
        self.similarities = self.match_excerpts(model)

    def run(self, settings):
        """Fine-tunes once and returns what was measured."""
        seed = settings["seed"]
        keras.utils.set_random_seed(seed)
        model = self.base.classifier(
            settings["method"],
            settings["rank_blocks"],
            seed,
            self.data.classes,
        )
        start = time.perf_counter()
        epochs = {}
        if settings["method"] != "base":
            epochs = self.fit(model, settings)
        fitted = time.perf_counter()
        trainable = fitting.trainable(model)
        perturbation = self.perturbation(model)
        fitting.merge(model)
        measured = {
            "trainable": trainable,
            "loss": None,
            **epochs,
            "dev_accuracy": accuracy(model, *self.data.dev),
            "test_accuracy": accuracy(model, *self.data.test),
            **perturbation,
            **self.retention(model),
            "fit_seconds": fitted - start,
            "seconds": time.perf_counter() - start,
        }
        return fitting.finite(measured)

    def fit(self, model, settings):
        """Trains, and returns the loss and the accuracies by epoch."""
        inputs, labels = fitting.choose(
            self.data.train, settings["samples"], settings["seed"]
        )
        batches = data_lib.Batches(
            inputs, labels, settings["batch_size"], settings["seed"]
        )
        return fitting.fit(
            model,
            batches,
            settings,
            loss(),
            lambda m: accuracy(m, *self.data.dev),
        )

    def perturbation(self, model):
        """How far the kernels have moved; means over the linear maps."""
        if self.only_accuracy:
            return dict.fromkeys(PERTURBATION)
        moved, energies, blocks = [], [], []
        for path, layer in linear_maps(model).items():
            kernel = _numpy(layer.kernel)
            moved.append(kernel_distance(self.kernels[path], kernel))
            energies.append(_energy(layer) / self.energies[path] - 1.0)
            if kinds.is_adapted(layer):
                row = diagnosis.diagnose_layer("", layer, energy=False)
                blocks.append(row.distance)
        return {
            "kernel_distance": float(np.mean(moved)),
            "energy_change": float(np.mean(energies)),
            "block_distance": max(blocks) if blocks else None,
        }

    def retention(self, model):
        """What is left of the base's own task, ranking by cosine.

        The first two thirds of each sentence rank the last two thirds of all.
        """
        if self.only_accuracy:
            return dict.fromkeys(RETENTION)
        found = self.match_excerpts(model)
        if not np.all(np.isfinite(found)):
            return dict.fromkeys(RETENTION)
        right = found.argmax(axis=1) == np.arange(len(found))
        return {
            "match_accuracy": float(right.mean()),
            "rank_correlation": _rank_correlation(found, self.similarities),
        }

    def match_excerpts(self, model):
        """Cosines of first excerpts, in rows, and last ones, in columns."""
        first, last = (
            embed(model.backbone, inputs) for inputs in self.data.excerpts
        )
        return first @ last.T


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear_maps(model):
    """The layers that methods adapt, by path: linear maps of the backbone.

    Found by what they are: `plan` refuses a model that has adapters already.
    """
    return {
        path: layer
        for path, layer in LayerTree(model.backbone).layers.items()
        if kinds.is_linear(layer)
    }


def accuracy(model, inputs, labels):
    """Share of the sentences whose highest output is that of their class."""
    logits = _by_length(model.predict_on_batch, inputs)
    return float((logits.argmax(axis=-1) == labels).mean())


def embed(backbone, inputs):
    """Mean of a sentence's token vectors, of length 1."""

    def mean(part):
        outputs = backbone.predict_on_batch(part)
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        mask = part["padding_mask"][..., None]
        return (outputs * mask).sum(axis=1) / mask.sum(axis=1)

    vectors = _by_length(mean, inputs)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _by_length(function, inputs):
    """Applies `function` to batches of like length; rows in their order."""
    lengths = inputs["padding_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    found = [
        function(data_lib.cut(inputs, part, lengths))
        for part in data_lib.split(order, EVALUATION_BATCH)
    ]
    return np.concatenate(found)[np.argsort(order)].astype("float32")


def _energy(layer):
    view = kinds.view_of(layer)
    return hyperspherical_energy(
        view.neurons(ops.convert_to_tensor(layer.kernel))
    )


def _rank_correlation(one, other):
    """Spearman's correlation of the rows of two matrices, their mean."""
    ranks = [np.argsort(np.argsort(m, axis=1), axis=1) for m in (one, other)]
    rows = zip(*ranks, strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in rows]))


def _numpy(tensor):
    tensor = ops.cast(tensor, "float32")
    return np.array(ops.convert_to_numpy(tensor))
