"""Labelled sentences as token ids, kept on disk once they are tokenized."""

import hashlib
import json
import os
from dataclasses import dataclass

import keras
import numpy as np

from benchmarks.experiments import datasets
from benchmarks.experiments.datasets import PARTS


@dataclass(frozen=True)
class Data:
    """Token ids, as the model takes them, and labels.

    Attributes:
        train: `(inputs, labels)` of all sentences to draw from.
        dev: The same, to choose rates by.
        test: The same, to report.
        classes: Number of classes.
    """

    train: tuple
    dev: tuple
    test: tuple
    classes: int


def load(options, preprocessor) -> Data:
    """Reads and tokenizes the sentences, or reads what an earlier run kept."""
    settings = {
        "data": datasets.name(options),
        "preset": options.preset,
        "length": options.length,
        "dev": options.dev_samples,
        "test": options.test_samples,
    }
    arrays = kept(
        options.results, settings, lambda: _tokenize(options, preprocessor)
    )

    parts = {
        part: (columns(arrays, part), arrays[f"labels_{part}"])
        for part in PARTS
    }
    classes = int(max(labels.max() for _, labels in parts.values())) + 1
    return Data(**parts, classes=classes)


def kept(folder, settings, make):
    """Arrays by name, from disk if they were made before.

    Args:
        folder: Path, where they are kept.
        settings: Dictionary, what decides them.
        make: Function without arguments that makes them.
    """
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = folder / f"tokens-{digest}.npz"
    if not path.exists():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        # More than one process may be at it.
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **arrays)
        partial.rename(path)
    with np.load(path) as file:
        return dict(file)


def columns(arrays, part):
    """The arrays of a part, which are named `part/column`."""
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{part}/")
    }


def _tokenize(options, preprocessor):
    parts = datasets.read(options)
    arrays = {}
    for part, pairs in parts.items():
        for key, value in preprocessor([text for text, _ in pairs]).items():
            value = np.asarray(keras.ops.convert_to_numpy(value))
            arrays[f"{part}/{key}"] = value
        labels = np.array([label for _, label in pairs], dtype="int32")
        arrays[f"labels_{part}"] = labels
    return arrays


class Batches:
    """Shuffled batches of examples of like length.

    A batch is cut after its longest sentence, at a multiple of 8, so that
    compilers meet few shapes.
    """

    def __init__(self, inputs, labels, batch_size, seed):
        self.inputs, self.labels = inputs, labels
        self.batch_size = batch_size
        self.lengths = lengths(inputs)
        self.rng = np.random.default_rng(seed)
        self.shuffle()

    def shuffle(self):
        """Draws the batches of another epoch."""
        order = self.rng.permutation(len(self.labels))
        pool = 16 * self.batch_size
        order = np.concatenate(
            [
                part[np.argsort(self.lengths[part], kind="stable")]
                for part in np.split(order, range(pool, len(order), pool))
            ]
        )
        parts = list(split(order, self.batch_size))
        self.parts = [parts[i] for i in self.rng.permutation(len(parts))]

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        part = self.parts[index]
        return cut(self.inputs, part, self.lengths), self.labels[part]


def lengths(inputs):
    """The tokens of each text; 0 for arrays, whose rows are of one size."""
    if isinstance(inputs, dict):
        return inputs["padding_mask"].sum(axis=1)
    return np.zeros(len(inputs), "int64")


def split(order, size):
    return np.split(order, range(size, len(order), size))


def cut(inputs, part, lengths):
    """The rows `part` of some inputs, without what is padding in all."""
    if not isinstance(inputs, dict):
        return inputs[part]
    length = -(-int(lengths[part].max()) // 8) * 8
    return {key: value[part, :length] for key, value in inputs.items()}
