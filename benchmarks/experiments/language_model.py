"""One run of a language model: learn to continue texts, test on others."""

import time

import keras
import numpy as np

from benchmarks.experiments import data as data_lib
from benchmarks.experiments import datasets
from benchmarks.experiments import fitting
from examples import language_models

# Small, since every token has an output for each word of the vocabulary.
EVALUATION_BATCH = 8
# Methods that train nothing, by how many training texts precede a text.
SHOTS = {"base": 0, "few-shot-1": 1, "few-shot-4": 4}


def load(options, preprocessor):
    """Rows of token ids by part, or what an earlier run kept of them.

    Texts are cut after `options.length` tokens, and only real ends are learned.

    Returns:
        Dictionary from each of `PARTS` to the arrays `token_ids` and
        `padding_mask`, which the model takes, and the next tokens `targets`
        with their `weights`, 0 for padding.
    """
    settings = {
        "task": options.task,
        "data": datasets.name(options),
        "preset": options.preset,
        "length": options.length,
        "dev": options.dev_samples,
        "test": options.test_samples,
    }

    def tokenize():
        arrays = {}
        for part, pairs in datasets.read(options).items():
            texts = [text for text, _ in pairs]
            inputs, *others = language_models.masked(
                preprocessor, [""] * len(texts), texts
            )
            columns = inputs | dict(
                zip(("targets", "weights"), others, strict=True)
            )
            for name, array in columns.items():
                arrays[f"{part}/{name}"] = array
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
        last, shots = None, SHOTS.get(settings["method"])
        parts = {part: self.data[part] for part in ("dev", "test")}
        rows = fitting.choose(self.data["train"], settings["samples"], seed)
        if shots is not None:
            parts = {
                part: after_examples(rows, shots, of)
                for part, of in parts.items()
            }
        else:
            batches = Batches(rows, settings["batch_size"], seed)
            last = fitting.fit(model, batches, settings, loss())
        fitted = time.perf_counter()
        trainable = fitting.trainable(model)
        fitting.merge(model)
        model.compile(loss=loss(), weighted_metrics=None)
        measured = {
            "trainable": trainable,
            "loss": last,
            "dev": mean_loss(model, parts["dev"]),
            "test": mean_loss(model, parts["test"]),
            "test_tokens": int(parts["test"]["weights"].sum()),
            "fit_seconds": fitted - start,
            "seconds": time.perf_counter() - start,
        }
        return fitting.finite(measured)


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


def after_examples(train, shots, rows):
    """Rows behind the first texts to train on, which have no loss."""
    masks = train["padding_mask"][:shots].astype(bool)
    tokens = train["token_ids"][:shots][masks]
    prompt = {name: np.zeros_like(tokens) for name in rows}
    prompt |= {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}

    def behind(name, array):
        before = np.tile(prompt[name].astype(array.dtype), (len(array), 1))
        return np.concatenate([before, array], axis=1)

    return {name: behind(name, array) for name, array in rows.items()}


def loss():
    """Cross-entropy of the next token: the mean over tokens, not padding."""
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )


def mean_loss(model, rows):
    """A compiled model's mean loss a token, in nats."""
    lengths = data_lib.lengths(rows)
    order = np.argsort(lengths, kind="stable")
    total, tokens = 0.0, 0.0
    for part in data_lib.split(order, EVALUATION_BATCH):
        batch = arguments(data_lib.cut(rows, part, lengths))
        found = model.test_on_batch(*batch, return_dict=True)["loss"]
        count = float(batch[-1].sum())
        total, tokens = total + float(found) * count, tokens + count
    return total / tokens
