"""One run of a classifier: fine-tune it, and test it."""

import time

import keras
import numpy as np
from sklearn import linear_model
from sklearn import preprocessing

from benchmarks.experiments import data as data_lib
from benchmarks.experiments import fitting

EVALUATION_BATCH = 64
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# Regularizations of the logistic regression, to choose among.
PENALTIES = (0.1, 1.0, 10.0, 100.0)


class Trainer:
    """Runs on one base and one set of data.

    Args:
        base: A `Base`.
        data: A `Data`.
    """

    def __init__(self, base, data):
        self.base, self.data = base, data
        self.kept = {}

    def run(self, settings):
        """Fine-tunes once and returns what was measured."""
        seed = settings["seed"]
        if settings["method"] == "majority":
            return self.majority()
        if settings["method"] == "logistic":
            return self.logistic(settings)
        keras.utils.set_random_seed(seed)
        model = self.base.build(
            settings["method"],
            settings["rank_blocks"],
            seed,
            num_classes=self.data.classes,
        )
        start = time.perf_counter()
        inputs, labels = fitting.choose(
            self.data.train, settings["samples"], seed
        )
        parts = self.data.dev, self.data.test
        if settings["method"] == "head":
            features, model = halves(model)
            (inputs, *found) = self.frozen(
                features, seed, [inputs, *(x for x, _ in parts)]
            )
            parts = [(x, y) for x, (_, y) in zip(found, parts, strict=True)]
        batches = data_lib.Batches(inputs, labels, settings["batch_size"], seed)
        if settings.get("head_first"):
            self.start_head(model, inputs, labels, settings)
        loss = fitting.fit(model, batches, settings, LOSS)
        fitted = time.perf_counter()
        trainable = fitting.trainable(model)
        fitting.merge(model)
        measured = {
            "trainable": trainable,
            "loss": loss,
            "dev": accuracy(model, *parts[0]),
            "test": accuracy(model, *parts[1]),
            "fit_seconds": fitted - start,
            "seconds": time.perf_counter() - start,
        }
        return fitting.finite(measured)

    def start_head(self, model, inputs, labels, settings):
        """Trains the head alone, at a rate and for epochs of its own.

        The adapters have to start at the pretrained model.
        """
        features, head = halves(model)
        found = _by_length(features.predict_on_batch, inputs)
        seed, size = settings["seed"], settings["batch_size"]
        rates = dict.fromkeys(
            ["learning_rate", "head_rate"], settings["head_first"]
        )
        batches = data_lib.Batches(found, labels, size, seed)
        fitting.fit(head, batches, settings | rates, LOSS)

    def frozen(self, features, seed, parts):
        """What a frozen backbone makes of some inputs, once for a seed."""
        if seed not in self.kept:
            self.kept[seed] = [
                _by_length(features.predict_on_batch, x) for x in parts
            ]
        return self.kept[seed]

    def majority(self):
        """Shares of the commonest class."""
        (_, dev), (_, test) = self.data.dev, self.data.test
        return {
            "trainable": 0,
            "dev": float(np.bincount(dev).max() / len(dev)),
            "test": float(np.bincount(test).max() / len(test)),
            "seconds": 0.0,
        }

    def logistic(self, settings):
        """Logistic regression on the frozen backbone's mean vectors."""
        start = time.perf_counter()
        backbone = self.base.build("base", 1, 0, num_classes=2).backbone
        inputs, labels = fitting.choose(
            self.data.train, settings["samples"], settings["seed"]
        )
        train, dev, test = (
            embed(backbone, x)
            for x in (inputs, self.data.dev[0], self.data.test[0])
        )
        scale = preprocessing.StandardScaler().fit(train)
        train, dev, test = map(scale.transform, (train, dev, test))
        best = None
        for penalty in PENALTIES:
            found = linear_model.LogisticRegression(C=penalty, max_iter=2000)
            found.fit(train, labels)
            score = found.score(dev, self.data.dev[1])
            if best is None or score > best[0]:
                best = score, found
        return {
            "trainable": int(best[1].coef_.size + best[1].intercept_.size),
            "dev": float(best[0]),
            "test": float(best[1].score(test, self.data.test[1])),
            "seconds": time.perf_counter() - start,
        }


def halves(model):
    """A classifier's frozen backbone, and its head as a model of its own.

    The backbone then runs once for each example, not once an epoch.
    """
    first = model.layers[model.layers.index(model.backbone) + 1]
    return (
        keras.Model(model.input, first.input),
        keras.Model(first.input, model.output),
    )


def accuracy(model, inputs, labels):
    """Share of the examples whose highest output is that of their class."""
    logits = _by_length(model.predict_on_batch, inputs)
    return float((logits.argmax(axis=-1) == labels).mean())


def embed(backbone, inputs):
    """Mean of a text's vectors, without padding; a picture's class token."""

    def mean(part):
        outputs = backbone.predict_on_batch(part)
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        if not isinstance(part, dict):
            return outputs[:, 0]
        mask = part["padding_mask"][..., None]
        return (outputs * mask).sum(axis=1) / mask.sum(axis=1)

    return _by_length(mean, inputs)


def _by_length(function, inputs):
    """Applies `function` to batches of like length; rows in their order."""
    lengths = data_lib.lengths(inputs)
    order = np.argsort(lengths, kind="stable")
    found = [
        function(data_lib.cut(inputs, part, lengths))
        for part in data_lib.split(order, EVALUATION_BATCH)
    ]
    return np.concatenate(found)[np.argsort(order)].astype("float32")
