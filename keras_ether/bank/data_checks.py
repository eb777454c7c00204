"""Checks of the data that a user passes to a bank's model, batch by batch.

In a graph no error can be raised for an id. So the data passed to `fit`,
`predict` and `evaluate` are checked before, where their values are known.
"""

import copy
import itertools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ether.bank.access import Access
from keras_ether.ops.backend import BACKEND

# Function from a batch to the same, with ids that were checked.
Check = Callable[[Any], Any]


class Watch:
    """Checks data, and stores the first error of a check.

    A TensorFlow pipeline, or a thread that reads data, would turn it into
    another error.

    Args:
        check: Function from a batch's inputs, and from whether a trial may run
            now, to inputs with ids that were checked.
        access: The bank's `Access`.
    """

    def __init__(self, check: Callable[[Any, bool], Any], access: Access):
        self._check = check
        self._access = access
        self.error: ValueError | None = None

    def of(self, x: Any) -> Any:
        """Data of the same type, checked when they are read.

        The first batch may have a trial here. Other batches have one if the
        computing thread reads them; on TensorFlow in any thread.
        """
        if x is None or isinstance(x, dict):
            # All batches at once.
            return self._inputs(x, True)
        if isinstance(x, keras.utils.PyDataset):
            self._batch(x[0], True)
            return _CheckedDataset(x, self._later)
        if hasattr(x, "element_spec"):
            if not hasattr(x, "map"):
                # A distributed dataset, whose ids only the graph sees.
                return x
            for batch in x.take(1).as_numpy_iterator():
                self._batch(batch, True)
            return _checked_pipeline(x, self._later)
        if hasattr(x, "collate_fn"):
            for batch in x:
                self._batch(batch, True)
                break
            return _checked_loader(x, self._later)
        if isinstance(x, Iterator):
            first = [
                self._batch(batch, True) for batch in itertools.islice(x, 1)
            ]
            return _checked(itertools.chain(first, x), self._later)
        return x

    def _later(self, batch: Any) -> Any:
        # PyTorch's calls check again. A trial takes no lock: the loop may hold
        # it and wait for this batch.
        may_try = self._access.is_mine or BACKEND == "tensorflow"
        return self._batch(batch, may_try)

    def _inputs(self, x: Any, may_try: bool) -> Any:
        try:
            return self._check(x, may_try)
        except ValueError as error:
            self.error = self.error or error
            raise

    def _batch(self, batch: Any, may_try: bool) -> Any:
        """A batch of inputs, labels and weights, with ids that were checked."""
        if isinstance(batch, tuple | list):
            first, *rest = batch
            return type(batch)((self._inputs(first, may_try), *rest))
        return self._inputs(batch, may_try)


def _checked(batches: Iterator, check: Check) -> Iterator:
    for batch in batches:
        yield check(batch)


class _CheckedDataset(keras.utils.PyDataset):
    def __init__(self, data: keras.utils.PyDataset, check: Check) -> None:
        super().__init__(
            workers=data.workers,
            # The check works only in this process.
            use_multiprocessing=False,
            max_queue_size=data.max_queue_size,
        )
        self.data = data
        self.check = check

    def __getitem__(self, index: int) -> Any:
        return self.check(self.data[index])

    @property
    def num_batches(self) -> int | None:
        return self.data.num_batches

    def on_epoch_begin(self) -> None:
        self.data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.data.on_epoch_end()


def _checked_loader(loader: Any, check: Check) -> Any:
    checked = copy.copy(loader)
    collate = loader.collate_fn
    checked.collate_fn = lambda samples: check(collate(samples))
    return checked


def _checked_pipeline(dataset: Any, check: Check) -> Any:
    import tensorflow as tf

    def look(*batch: Any) -> Any:
        flat = tf.nest.flatten(batch)

        def run(*values: Any) -> np.ndarray:
            arrays = [value.numpy() for value in values]
            found = tf.nest.pack_sequence_as(batch, arrays)
            check(found if len(found) > 1 else found[0])
            return np.zeros((), "int32")

        with tf.control_dependencies([tf.py_function(run, flat, tf.int32)]):
            same = tf.nest.map_structure(tf.identity, batch)
        return same if len(same) > 1 else same[0]

    return dataset.map(look)
