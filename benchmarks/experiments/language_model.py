"""One run of a language model: learn to continue texts, test on others."""

import time

import keras
import keras_hub
import numpy as np

from benchmarks.experiments import data as data_lib
from benchmarks.experiments import datasets
from benchmarks.experiments import fitting
from benchmarks.experiments.models import Pretrained
from examples.real_models import smollm2_135m_instruct as smollm2

# As the runs on disk name it.
SMOLLM2 = "keras_ether/smollm2-135m-instruct"

# Small, since every token has an output for each of 49,152.
EVALUATION_BATCH = 8


def settings(options):
    """What decides the outcome of a run, besides what all tasks have."""
    return {
        "task": "language model",
        "data": datasets.name(options),
        "preset": options.preset or SMOLLM2,
    }


def trainer(options):
    """A `Trainer`, as the command line asks for it."""
    pretrained = base(options)
    return Trainer(pretrained, load(options, pretrained.preprocessor))


def base(options):
    """The `Pretrained` that language models are built from."""
    preset = options.preset or smollm2.preset()
    # One more token than is trained on, see `load`.
    return Pretrained(
        keras_hub.models.CausalLM.from_preset(preset), options.length + 1
    )


def load(options, preprocessor):
    """Rows of token ids by part, or what an earlier run kept of them.

    Texts are cut after `options.length` tokens. KerasHub's preprocessor ends
    also those that it cuts with the end token; since it cuts one token later,
    that end is cut off here, and only real ends are learned.

    Returns:
        Dictionary from each of `PARTS` to the arrays `token_ids` and
        `padding_mask`, which the model takes, and the next tokens `targets`
        with their `weights`, 0 for padding.
    """
    settings = {
        "task": "language model",
        "data": datasets.name(options),
        "preset": options.preset,
        "length": options.length,
        "dev": options.dev_samples,
        "test": options.test_samples,
    }

    def tokenize():
        arrays = {}
        for part, pairs in datasets.read(options).items():
            inputs, *others = preprocessor([text for text, _ in pairs])
            columns = {**inputs} | dict(
                zip(("targets", "weights"), others, strict=True)
            )
            for name, array in columns.items():
                array = np.asarray(keras.ops.convert_to_numpy(array))
                arrays[f"{part}/{name}"] = array[:, : options.length]
        return arrays

    arrays = data_lib.kept(options.results, settings, tokenize)
    return {part: data_lib.columns(arrays, part) for part in datasets.PARTS}


class Trainer:
    """Runs on one base and one set of texts.

    Args:
        base: A `Pretrained`.
        data: Dictionary as `load` returns it.
    """

    def __init__(self, base, data):
        self.base, self.data = base, data

    def run(self, settings):
        """Fine-tunes once and returns what was measured."""
        seed = settings["seed"]
        keras.utils.set_random_seed(seed)
        model = self.base.build(
            settings["method"], settings["rank_blocks"], seed
        )
        start = time.perf_counter()
        epochs = {}
        if settings["method"] != "base":
            epochs = self.fit(model, settings)
        fitted = time.perf_counter()
        measured = {
            "trainable": fitting.trainable(model),
            "loss": None,
            **epochs,
        }
        fitting.merge(model)
        model.compile(loss=loss(), weighted_metrics=None)
        measured |= {
            "dev_loss": mean_loss(model, self.data["dev"]),
            "test_loss": mean_loss(model, self.data["test"]),
            "test_tokens": int(self.data["test"]["weights"].sum()),
            "fit_seconds": fitted - start,
            "seconds": time.perf_counter() - start,
        }
        return fitting.finite(measured)

    def fit(self, model, settings):
        """Trains, and returns the losses, on the dev part by epoch."""
        rows = fitting.choose(
            self.data["train"], settings["samples"], settings["seed"]
        )
        batches = Batches(rows, settings["batch_size"], settings["seed"])
        return fitting.fit(
            model,
            batches,
            settings,
            loss(),
            lambda model: mean_loss(model, self.data["dev"]),
        )


class Batches(data_lib.Batches):
    """Shuffled batches of texts of like length, with their next tokens."""

    def __init__(self, rows, batch_size, seed):
        super().__init__(rows, rows["targets"], batch_size, seed)

    def __getitem__(self, index):
        rows, _ = super().__getitem__(index)
        return arguments(rows)


def arguments(rows):
    """Rows as `train_on_batch` takes them."""
    rows = dict(rows)
    targets, weights = rows.pop("targets"), rows.pop("weights")
    return rows, targets, weights.astype("float32")


def loss():
    """Cross-entropy of the next token: the mean over tokens, not padding."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )


def mean_loss(model, rows):
    """A compiled model's mean loss a token, in nats."""
    lengths = rows["padding_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    total, tokens = 0.0, 0.0
    for part in data_lib.split(order, EVALUATION_BATCH):
        batch = arguments(data_lib.cut(rows, part, lengths))
        found = model.test_on_batch(*batch, return_dict=True)["loss"]
        count = float(batch[-1].sum())
        total, tokens = total + float(found) * count, tokens + count
    return total / tokens
