"""Checks of the data that a user passes to a bank's model, batch by batch.

In a graph no error can be raised for an id. So the data passed to `fit`,
`predict` and `evaluate` are checked before, where their values are known.
"""

import copy
import itertools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ether.ops.backend import BACKEND

# Function from a batch to the same, with ids that were checked.
Check = Callable[[Any], Any]
# The length of a pipeline that TensorFlow does not know.
UNKNOWN = -2


class Watch:
    """Checks data, and stores the first error of a check.

    A TensorFlow pipeline, or a thread that reads data, would turn it into
    another error.

    Args:
        check: Function from inputs, from whether a trial may run now, and from
            the size of their batches if they are more than one, to inputs with
            ids that were checked.
    """

    def __init__(self, check: Callable[..., Any]):
        self._check = check
        self._thread = threading.get_ident()
        self.error: ValueError | None = None

    def of(self, x: Any, batch_size: int | None = None) -> Any:
        """Data of the same type, checked when they are read.

        The first batch may have a trial here, and is read once: some data can't
        be read again. Other batches have one if this thread reads them, or on
        TensorFlow in any thread.

        Args:
            x: What a user passes to a loop of the model.
            batch_size: Integer, into batches of which size the loop divides
                arrays. Defaults to `None`, for one batch.
        """
        if x is None or isinstance(x, dict):
            # All batches at once.
            return self._inputs(x, True, batch_size=batch_size)
        if isinstance(x, keras.utils.PyDataset):
            # By an index, and before an epoch may shuffle: it is read again.
            self._batch(x[0], True)
            return _CheckedDataset(x, self._later)
        if hasattr(x, "element_spec"):
            if not hasattr(x, "map"):
                # A distributed dataset, whose ids only the graph sees.
                return x
            if BACKEND == "tensorflow":
                return _checked_pipeline(x, self._later)
            if int(x.cardinality()) == UNKNOWN:
                # It may be of data that are read once.
                return self._begun_pipeline(x)
            for batch in x.take(1).as_numpy_iterator():
                self._batch(batch, True)
            return _checked_pipeline(x, self._later)
        if hasattr(x, "collate_fn"):
            return _checked_loader(x, self._later, self._begun(iter(x)))
        if isinstance(x, Iterator):
            # Keras takes generators only.
            return (batch for batch in self._begun(x))
        return x

    def _begun(self, batches: Iterator) -> Iterator:
        """Checked batches, of which the first is read and checked now."""
        first = [self._batch(one, True) for one in itertools.islice(batches, 1)]
        return itertools.chain(first, map(self._later, batches))

    def _begun_pipeline(self, dataset: Any) -> Any:
        """The same pipeline, of which the first batch is read now."""
        batches = dataset.as_numpy_iterator()
        first = list(itertools.islice(batches, 1))
        for batch in first:
            self._batch(batch, True)
        begun = [itertools.chain(first, batches)]

        def read() -> Iterator:
            for batch in begun.pop() if begun else dataset.as_numpy_iterator():
                self._later(batch)
                yield batch

        return type(dataset).from_generator(
            read, output_signature=dataset.element_spec
        )

    def _later(self, batch: Any) -> Any:
        # A trial takes no lock: the loop may hold it and wait for this batch.
        is_mine = threading.get_ident() == self._thread
        return self._batch(batch, is_mine or BACKEND == "tensorflow")

    def _inputs(self, x: Any, may_try: bool, **kwargs: Any) -> Any:
        try:
            return self._check(x, may_try, **kwargs)
        except ValueError as error:
            self.error = self.error or error
            raise

    def _batch(self, batch: Any, may_try: bool) -> Any:
        """A batch of inputs, labels and weights, with ids that were checked."""
        if isinstance(batch, tuple | list):
            first, *rest = batch
            return type(batch)((self._inputs(first, may_try), *rest))
        return self._inputs(batch, may_try)


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


def _checked_loader(loader: Any, check: Check, begun: Iterator) -> Any:
    import torch

    def tensors(batch: Any) -> Any:
        return keras.tree.map_structure(
            lambda x: torch.as_tensor(x) if isinstance(x, np.ndarray) else x,
            batch,
        )

    loader_class: Any = type(loader)

    class CheckedLoader(loader_class):
        def __iter__(self) -> Iterator:
            batches = map(check, super().__iter__())
            return map(tensors, first.pop() if first else batches)

    first = [begun]
    checked = copy.copy(loader)
    checked.__class__ = CheckedLoader
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
