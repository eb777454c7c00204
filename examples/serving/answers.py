"""Answers by many adapters: no web in it.

Adapters are files in a folder, `NAME.safetensors`, loaded when they are asked
for and whenever they have changed since.
"""

import collections
import contextlib
import difflib
import pathlib
import re
import threading

import keras
import keras_hub
import numpy as np

import keras_ether

VOCABULARY, LENGTH = 30_522, 64
SUFFIX = ".safetensors"
NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}"


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


class UnknownAdapterError(Exception):
    """There is no adapter of this name; its argument are the near names."""


class DamagedAdapterError(Exception):
    """The file of an adapter can't be read, or does not fit the model."""


class BusyError(Exception):
    """More adapters are asked for at once than there is room for."""


class Answers:
    """A bank of the adapters in a folder.

    Args:
        model: The adapted model.
        folder: String or `PathLike`, where the adapters' files are.
        capacity: Integer, how many of them are in memory at most.
        batch: Integer, the size of the largest batch that the model is given.
            Others are filled up to the next power of two, so that nothing is
            compiled again.

    Attributes:
        counts: How many adapters were asked for that were in memory, were
            loaded, and went for others: `"hits"`, `"loads"`, `"evictions"`.
    """

    def __init__(self, model, folder, capacity=256, batch=32):
        self.folder = pathlib.Path(folder).resolve()
        self.bank = keras_ether.AdapterBank(model, capacity)
        self.counts = collections.Counter(hits=0, loads=0, evictions=0)
        # Of the files that are in the bank: their times and size.
        self._stamps = {}
        self._lock = threading.Lock()
        powers = [2**i for i in range(batch.bit_length())]
        self.sizes = [size for size in powers if size < batch] + [batch]
        # The trial of the largest batch is valid for the others.
        for size in reversed(self.sizes):
            self([None] * size, [[1]] * size)

    def check(self, name):
        """Raises an `UnknownAdapterError` if there is no such adapter."""
        if name is not None and self._file(name) is None:
            names = [path.stem for path in self.folder.glob(f"*{SUFFIX}")]
            near = difflib.get_close_matches(str(name), names)
            raise UnknownAdapterError(near)

    def __call__(self, names, token_ids):
        """The logits of one batch, each example by its own adapter.

        In the place of an example's logits is an exception where its adapter
        has none, and the others have theirs.
        """
        # One batch at a time, or files would be read twice.
        with self._lock, contextlib.ExitStack() as in_use:
            errors, used = {}, set()
            for name in dict.fromkeys(names):
                if name is None:
                    continue
                try:
                    self._load(name, used)
                    # None of them goes for another of this batch.
                    in_use.enter_context(self.bank.using([name]))
                    used.add(name)
                except (
                    UnknownAdapterError,
                    DamagedAdapterError,
                    BusyError,
                ) as error:
                    errors[name] = error
            size = next(size for size in self.sizes if size >= len(names))
            missing = size - len(names)
            logits = self.bank.predict(
                inputs_of([*token_ids, *[[1]] * missing]),
                [None if n in errors else n for n in names] + [None] * missing,
                batch_size=size,
            )
        return [
            errors.get(name, row)
            for name, row in zip(names, logits, strict=False)
        ]

    def _file(self, name):
        """The file of an adapter, in the folder itself, or `None`."""
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            return None
        path = self.folder / f"{name}{SUFFIX}"
        # Not a link to a file elsewhere.
        is_here = path.resolve().parent == self.folder
        return path if is_here and path.is_file() else None

    def _load(self, name, used):
        """Brings an adapter into the bank, as its file is now."""
        try:
            path = self._file(name)
            stat = None if path is None else path.stat()
        except OSError:
            stat = None
        there = name in self.bank.names
        if stat is None:
            if there:
                self.bank.remove(name)
            self.check(name)
            raise UnknownAdapterError([])
        # A copy may keep the time of another file, but not when it came.
        stamp = stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
        if there and self._stamps.get(name) == stamp:
            self.counts["hits"] += 1
            return
        if not there and len(used) == self.bank.capacity:
            raise BusyError(f"More than {len(used)} adapters at once")
        before = self.bank.names
        try:
            self.bank.add(name, path, evict=True)
        except (OSError, ValueError) as error:
            if there:
                # It must not be answered as it was.
                self.bank.remove(name)
            raise DamagedAdapterError(
                f"The file of adapter '{name}' is damaged or does not fit"
            ) from error
        self._stamps[name] = stamp
        self.counts["loads"] += 1
        for other in set(before) - set(self.bank.names):
            self.counts["evictions"] += 1
            self._stamps.pop(other, None)
