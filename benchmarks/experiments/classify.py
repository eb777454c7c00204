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
# A head's start, in place of a rate at which it trains alone.
LOGISTIC = "logistic"


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

        With `LOGISTIC` in place of a rate, logistic regression on what the
        head reads gives its weights. The adapters have to start at the
        pretrained model.
        """
        features, head = halves(model)
        found = _by_length(features.predict_on_batch, inputs)
        if settings["head_first"] == LOGISTIC:
            dev = _by_length(features.predict_on_batch, self.data.dev[0])
            scale, fitted, _ = regression(
                (found, labels), (dev, self.data.dev[1])
            )
            (layer,) = [x for x in head.layers if x.weights]
            layer.set_weights(weights_of(scale, fitted, self.data.classes))
            return
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
        labelled = (train, labels), (dev, self.data.dev[1])
        scale, found, score = regression(*labelled)
        test = scale.transform(test)
        return {
            "trainable": int(found.coef_.size + found.intercept_.size),
            "dev": float(score),
            "test": float(found.score(test, self.data.test[1])),
            "seconds": time.perf_counter() - start,
        }


def regression(train, dev):
    """Logistic regression whose penalty the validation set chose.

    Args:
        train: `(vectors, labels)` to fit.
        dev: The same, to choose by.

    Returns:
        `(scale, regression, accuracy)`: what standardizes vectors, what was
        fitted to the standardized ones, and its accuracy on `dev`.
    """
    scale, best = preprocessing.StandardScaler().fit(train[0]), None
    for penalty in PENALTIES:
        found = linear_model.LogisticRegression(C=penalty, max_iter=2000)
        found.fit(scale.transform(train[0]), train[1])
        score = found.score(scale.transform(dev[0]), dev[1])
        if best is None or score > best[2]:
            best = scale, found, score
    return best


def weights_of(scale, found, classes):
    """A regression as the kernel and the bias of a `Dense` layer."""
    rows = found.coef_ / scale.scale_
    bias = found.intercept_ - rows @ scale.mean_
    if len(rows) == 1:  # of two classes
        rows, bias = np.stack([-rows[0], rows[0]]) / 2, np.r_[-bias, bias] / 2
    # A class that no example has is far away.
    kernel = np.zeros((rows.shape[1], classes), "float32")
    shift = np.full(classes, bias.min() - 10, "float32")
    kernel[:, found.classes_], shift[found.classes_] = rows.T, bias
    return [kernel, shift]


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
