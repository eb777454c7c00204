"""Answers by many adapters: no web in it.

Adapters are files in a folder, `NAME.safetensors`, loaded when first asked for.
"""

import difflib
import pathlib
import threading

import keras
import keras_hub
import numpy as np

import keras_ether

VOCABULARY, LENGTH = 30_522, 64
SUFFIX = ".safetensors"


def base_model(layers=6, width=384, heads=12):
    """A classifier of all-MiniLM-L6-v2's size; its weights are random.

    In its place stands yours, adapted as the adapters in the folder are.
    """
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=LENGTH,
        name="backbone",
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None
    )
    model.compile("sgd", "mse")
    return model


def adapted_model(**size):
    """The base with adapters: what a bank is made from."""
    model = base_model(**size)
    return keras_ether.apply(model, rank_blocks=4, targets="all-linear", seed=0)


def inputs_of(token_ids):
    """Lists of token ids as the model takes them."""
    tokens = np.zeros((len(token_ids), LENGTH), "int32")
    mask = np.zeros_like(tokens)
    for row, ids in enumerate(token_ids):
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return {
        "token_ids": tokens,
        "padding_mask": mask,
        "segment_ids": np.zeros_like(tokens),
    }


class UnknownAdapterError(KeyError):
    """There is no adapter of this name; its argument are the near names."""


class Answers:
    """A bank of the adapters in a folder.

    Args:
        model: The adapted model.
        folder: String or `PathLike`, where the adapters' files are.
        capacity: Integer, how many of them are in memory at most.
        batch: Integer, the size of the largest batch that the model is given.
            Others are filled up to the next power of two, so that nothing is
            compiled again.
    """

    def __init__(self, model, folder, capacity=256, batch=32):
        if capacity < batch:
            raise ValueError(
                "`capacity` must be at least `batch`: a batch may name that "
                f"many adapters. Received: capacity={capacity}, batch={batch}"
            )
        self.folder = pathlib.Path(folder)
        self.bank = keras_ether.AdapterBank(model, capacity)
        # One batch at a time: no adapter comes or goes while one is computed.
        self._lock = threading.Lock()
        powers = [2**i for i in range(batch.bit_length())]
        self.sizes = [size for size in powers if size < batch] + [batch]
        for size in self.sizes:
            self([None] * size, [[1]] * size)

    def check(self, name):
        """Raises an `UnknownAdapterError` if there is no such adapter."""
        if name is None or (self.folder / f"{name}{SUFFIX}").is_file():
            return
        names = [path.stem for path in self.folder.glob(f"*{SUFFIX}")]
        raise UnknownAdapterError(difflib.get_close_matches(name, names))

    def __call__(self, names, token_ids):
        """The logits of one batch, each example by its own adapter.

        An adapter whose file is gone or does not fit answers with the error,
        the others with their logits.
        """
        with self._lock:
            ready, errors = self._load(names)
            filled = [name if name in ready else None for name in names]
            size = next(size for size in self.sizes if size >= len(names))
            missing = size - len(names)
            x = inputs_of([*token_ids, *[[1]] * missing])
            x["adapter_id"] = self.bank.ids(filled + [None] * missing)
            logits = self.bank.model.predict_on_batch(x)
        return [
            errors.get(name, row)
            for name, row in zip(names, np.asarray(logits), strict=False)
        ]

    def _load(self, names):
        """The names that are in the bank now, and errors of the others."""
        wanted = dict.fromkeys(name for name in names if name is not None)
        there = [name for name in wanted if name in self.bank.names]
        # Used last, so that none of them is let go of for another.
        self.bank.ids(there)
        ready, errors = set(there), {}
        for name in wanted:
            if name in ready:
                continue
            try:
                self.bank.add(name, self.folder / f"{name}{SUFFIX}", evict=True)
                ready.add(name)
            except (OSError, ValueError) as error:
                errors[name] = error
        return ready, errors
