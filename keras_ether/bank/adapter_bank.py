"""`AdapterBank`: adapters by name, each in a row of the bank's model."""

import contextlib
import os
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether.adapters import arguments
from keras_ether.bank import generating
from keras_ether.bank import row_contents
from keras_ether.bank.bank_model import BankModel
from keras_ether.bank.inputs import ADAPTER_ID
from keras_ether.bank.inputs import INPUTS
from keras_ether.bank.inputs import preprocessed
from keras_ether.bank.structure import BASE
from keras_ether.bank.structure import structure_of
from keras_ether.ops.values import integer
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_file
from keras_ether.saving import atomic_write
from keras_ether.types import Model


class AdapterBank:
    """Many adapters on one base; each example of a batch uses its own.

    The bank stacks the adapters' vectors, a row for each adapter. An integer
    for each example, its id, selects a row, which replaces the model's own
    vectors. Every adapter also has its own head. The adapters share the base.
    Row 0 is the base itself, with the model's head at the time when the bank is
    made. Adding or removing adapters triggers no compilation, and the model
    passed works as before (Bini et al., ICML 2024, sections 1 and 3).

    A trial run checks that no example gets the answer of another adapter. It
    compares batches of several random adapters with each adapter alone, and
    with other examples in the batch. There is a trial for every new kind of
    inputs (`predict`, `fit`, `generate`, another length), and for every batch
    larger than those before. A trial takes 16 forward passes of 5 to 13
    examples in two sizes, and 7 of the batch if that is larger, with its size
    rounded up to a power of two. For each size, 16 bits or a quantized base
    take 4 more passes, and TensorFlow takes 1 more. `fit` adds 12 passes, and 5
    of a larger batch. A trial of `generate` generates two tokens 12 times, and
    5 times for a larger batch.

    Threads may use a bank concurrently. A change of the bank waits for running
    calls, and calls wait for the change.

    Args:
        model: A Keras model that `keras_ether.apply` or
            `keras_ether.load_adapter` has adapted. It determines the layers
            that the bank's adapters may cover, their method, blocks, side and
            strength, and the shape of their heads.
        capacity: Integer, the maximum number of adapters.
        trial: Inputs for the first trial, one example or more, in the form that
            the model takes. Defaults to `None`, for generated inputs.
        certify: Boolean, whether to run trials. Without trials, a model that
            mixes the examples of a batch silently gives wrong answers. Defaults
            to `True`.

    Attributes:
        model: A Keras model. It takes a dictionary: the inputs of `model`,
            under the key `"inputs"` if they are not a dictionary, and
            `adapter_id`, one integer per example. Use its `predict` or
            `export`, or call it. Before `fit` or `evaluate`, call its own
            `compile`. Id 0, `None` as a name, selects the base. Another id
            without an adapter in the bank raises a `ValueError` if its value is
            known. In your own compiled code the output for that example is NaN,
            or the lowest value of an integer dtype.
        capacity: The argument `capacity`.

    Raises:
        ValueError: if `model` has no adapter; if `capacity` is not a positive
            integer; if the trial can't run, or finds a layer that does not
            compute each example separately; or if a layer can't have a separate
            adapter for each example. Such a layer has a float8 kernel, or a
            kernel that is read outside its `call`. Or its method has no
            low-rank form (`"oft"`, `"naive"`). Or it trains in full and is not
            a `Dense`, `EinsumDense`, `LayerNormalization` or
            `RMSNormalization`. An error leaves the model unchanged.

    Example:

    >>> inputs = keras.Input((16,))
    >>> base = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    >>> bank = keras_ether.AdapterBank(keras_ether.apply(base), capacity=8)
    >>> bank.add("alice")
    1
    >>> bank.predict(np.ones((2, 16), "float32"), ["alice", None]).shape
    (2, 4)
    >>> with bank.using(["alice", None]) as ids:
    ...     x = {"inputs": np.ones((2, 16), "float32"), "adapter_id": ids}
    ...     bank.model.predict(x, verbose=0).shape
    (2, 4)
    """

    def __init__(
        self,
        model: Model,
        capacity: int,
        trial: Any = None,
        certify: bool = True,
    ) -> None:
        rows = integer(capacity)
        if rows is None or rows < 1:
            raise ValueError(
                "`capacity` must be a positive integer. Received: "
                f"capacity={capacity!r}"
            )
        certify = arguments.check_boolean(certify, "certify")
        if isinstance(model, BankModel):
            raise ValueError(
                "`model` must be an adapted model, not the model of another "
                f"bank. Received: model={model!r}"
            )
        self.capacity = rows
        structure = structure_of(model)
        with internals.strategy_scope(model):
            self.model = BankModel(model, structure, rows + 1, certify)
        try:
            self.model.certificates.start(trial)
        except BaseException:
            self.close()
            raise
        head = {name: to_numpy(v) for name, v in structure.head.items()}
        self.model.write(BASE, head)
        self._generator: generating.Generator | None = None

    def close(self) -> None:
        """Closes the bank, and restores the methods of the model.

        A closed bank can't be used. The end of a `with` block closes the bank
        too.
        """
        self.model.close()

    def __enter__(self) -> "AdapterBank":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order of their rows."""
        return self.model.table.names

    def add(self, name: str, source: Any = None, evict: bool = False) -> int:
        """Adds an adapter, or replaces the adapter of that name.

        A replacement keeps the id. `add` waits for running calls.

        Args:
            name: String, the adapter's name.
            source: String or `PathLike`, a file of `keras_ether.save_adapter`;
                an adapted model; or `None`, the default, for the initial
                vectors of `keras_ether.apply` and the base's head. An adapter
                may cover fewer layers than the bank. The others compute as in
                the base. With a learned strength both need the same `κ`
                (`keras_ether.apply`): as many layers, or 18 at most.
            evict: Whether a full bank removes the least recently used adapter
                that is not in use, see `remove`. Defaults to `False`.

        Returns:
            The adapter's id.

        Raises:
            ValueError: if the bank is full, or the adapter does not fit: it was
                trained over another base, has another method, other blocks,
                another side, strength, `κ` or head, or covers layers that the
                bank does not cover. An error leaves the bank unchanged.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(
                "An adapter's name must be a non-empty string. Received: "
                f"name={name!r}"
            )
        self.model.check_ready()
        content = None
        if source is not None:
            content = row_contents.content_from(source, name)
        with self.model.access.shared():
            self.model.check_values()
            structure = self.model.structure
            if content is None:
                values = self.model.values(BASE)
                values |= row_contents.initial_values(structure)
                covered = list(structure.adapted)
            else:
                values, covered = row_contents.values_for(
                    content, structure, name
                )
        with self.model.access.alone():
            self.model.check_values()
            return self.model.put(name, values, covered, evict)

    def remove(self, name: str) -> None:
        """Removes an adapter. Its id is never used again.

        Raises:
            ValueError: if there is no such adapter, or it is in use: by
                `using`, by a call, or by data that a running `fit`, `evaluate`
                or `predict` of the bank's model has read.
        """
        with self.model.access.alone():
            self.model.check_values()
            self.model.table.release(name)
            self.model.publish_ids()

    def ids(self, names: Sequence[str | None]) -> np.ndarray:
        """Returns the ids of adapters, one per example.

        Args:
            names: List of names; `None` stands for the base.

        Returns:
            Int32 array of shape `(len(names),)`.

        Raises:
            ValueError: if there is no such adapter.
        """
        return self.model.table.ids_of(_checked_names(names))

    @contextlib.contextmanager
    def using(self, names: Sequence[str | None]) -> Iterator[np.ndarray]:
        """Protects adapters from removal within a `with` block.

        Args:
            names: List of names; `None` stands for the base.

        Yields:
            The ids of the adapters, see `ids`. Within the block `remove`
            refuses these adapters, and `add` evicts only others.

        Raises:
            ValueError: if there is no such adapter.

        Example:

        >>> with bank.using(["alice", None]) as ids:
        ...     batch = {"inputs": x[:2], "adapter_id": ids}
        ...     y = bank.model.predict(batch, verbose=0)
        """
        with self.model.table.pinned(_checked_names(names)) as ids:
            yield ids

    def predict(
        self, x: Any, names: Sequence[str | None], **kwargs: Any
    ) -> Any:
        """Predicts, each example with its own adapter.

        Args:
            x: Inputs as the `predict` of the model takes them: arrays, or the
                raw inputs of a KerasHub task that has a preprocessor.
            names: List of names, one per example; `None` stands for the base.
            **kwargs: Further arguments of `predict`, such as `batch_size`.

        Returns:
            The result of the model's `predict`.

        Raises:
            ValueError: if there is no such adapter, or if there is not one name
                per example.

        Example:

        >>> y = bank.predict(x[:2], ["alice", None], batch_size=32)
        """
        x = preprocessed(self.model.base, x)
        kwargs.setdefault("verbose", 0)
        with self.using(names) as ids, self.model.one_call():
            x = x if isinstance(x, dict) else {INPUTS: x}
            if not len(ids):
                # Keras's `predict` fails without a batch.
                return self.model.predict_on_batch({**x, ADAPTER_ID: ids})
            return self.model.predict({**x, ADAPTER_ID: ids}, **kwargs)

    def save(self, name: str, filepath: str | os.PathLike) -> None:
        """Saves one adapter with its head, as `keras_ether.save_adapter` does.

        Args:
            name: String, the adapter's name.
            filepath: String or `PathLike`, ending in `".safetensors"`.

        Raises:
            ValueError: if there is no such adapter, a value is not finite, or
                the adapters of the bank's own model were merged or removed.
            OSError: if the folder is missing or can't be written to.
        """
        filepath = adapter_file.check_name(filepath)
        atomic_write.check_place(filepath)
        self.model.check_ready()
        with self.model.access.shared():
            self.model.restore_values()
            table = self.model.table
            values = self.model.values(table.row(name))
            content = row_contents.content_of_row(
                self.model.structure, table.covered[name], values
            )
        adapter_file.write(filepath, content)

    def generate(
        self, prompts: Any, adapters: Sequence[str | None], **kwargs: Any
    ) -> Any:
        """Generates text, each prompt with its own adapter.

        Args:
            prompts: List, or dictionary of lists or arrays, as the `generate`
                of the model takes it.
            adapters: List of names, one per prompt; `None` stands for the base.
            **kwargs: Further arguments of the model's `generate`, `max_length`
                and `stop_token_ids`.

        Returns:
            The result of the model's `generate`.

        Raises:
            ValueError: if the model can't generate, if there is no such
                adapter, or if there is not one name per prompt.
        """
        self.model.check_ready()
        if self._generator is None:
            self._generator = generating.Generator(self.model)
        with self.using(adapters) as ids, self.model.one_call():
            return self._generator.generate(prompts, ids, kwargs)

    def _values(self, row: int) -> dict[str, np.ndarray]:
        return self.model.values(row)


def _checked_names(names: Sequence[str | None]) -> Sequence[str | None]:
    # A copy: the caller's list may change while its adapters are in use.
    found = list(names)
    if isinstance(names, str) or not all(
        name is None or isinstance(name, str) for name in found
    ):
        raise ValueError(
            "`names` must be a list of names, one per example. Received: "
            f"names={names!r}"
        )
    return found
