"""Checkpoints of adapters during training, and resuming from them."""

import math
import os
import warnings
from typing import Any

import keras

from keras_ether.adapters import changes
from keras_ether.adapters.arguments import check_boolean
from keras_ether.ops import values
from keras_ether.saving import adapter_file
from keras_ether.saving import save_and_load
from keras_ether.saving import training_state
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.training_state import Position
from keras_ether.surgery import containers
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import adapted_layers
from keras_ether.surgery.layer_tree import tree_of
from keras_ether.types import Layer

__all__ = ["AdapterCheckpoint", "Position", "resume"]

MODES = ("auto", "min", "max")


class AdapterCheckpoint(keras.callbacks.ModelCheckpoint):
    """Saves adapters, head and training state during training.

    This callback works like `keras.callbacks.ModelCheckpoint`, but writes an
    adapter file, without the base. The file holds the content of
    `keras_ether.save_adapter`, the optimizer's variables, the step, and the
    states of random generators (on PyTorch also the global generator, which a
    `Dropout` without a seed uses). `keras_ether.callbacks.resume` continues
    from the file, and `keras_ether.load_adapter` loads its adapters. With Adam,
    which has two moments for each trained parameter, a checkpoint is about
    three times as large as a file of `keras_ether.save_adapter`. Files are
    replaced atomically, so a killed run leaves a complete file.

    If a value to be saved is not finite, the callback keeps the previous file
    and warns.

    Args:
        filepath: String or `PathLike`, ending in `".safetensors"`. It may hold
            `{epoch}`, `{batch}` and names of logged values, such as
            `"{epoch:02d}-{val_loss:.2f}.safetensors"`. Missing folders are
            created.
        monitor: String, the logged value to compare. Defaults to `"val_loss"`.
        verbose: 0 or 1, whether to print a message for each save. Defaults to
            0.
        save_best_only: Whether to save only if `monitor` has improved. Defaults
            to `False`.
        mode: `"min"`, `"max"` or `"auto"`, the direction of improvement.
            Defaults to `"auto"`.
        save_freq: `"epoch"`, or an integer number of batches. Defaults to
            `"epoch"`.
        initial_value_threshold: Float, the value that `monitor` must first
            improve on, such as `Position.best`. Defaults to `None`.

    Raises:
        ValueError: if an argument is not one of the above.

    Example:

    >>> checkpoint = keras_ether.callbacks.AdapterCheckpoint(
    ...     "latest.ether.safetensors"
    ... )
    >>> model.compile("adam", "mse")
    >>> history = model.fit(x, x[:, :4], verbose=0, callbacks=[checkpoint])
    >>> keras_ether.callbacks.resume(model, "latest.ether.safetensors")
    Position(epoch=1, batch=0, step=1, best=None)
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        _check_arguments(
            monitor,
            verbose,
            save_best_only,
            mode,
            save_freq,
            initial_value_threshold,
        )
        super().__init__(
            # The base class accepts only the suffixes of Keras's own files.
            "adapter.keras",
            monitor=monitor,
            verbose=verbose,
            save_best_only=save_best_only,
            mode=mode,
            save_freq=save_freq,
            initial_value_threshold=initial_value_threshold,
        )
        self.filepath = adapter_file.check_name(filepath)
        self._position = (0, 0)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        adapted_layers(self.model)
        training_state.set_global_generators_again(self.model)
        super().on_train_begin(logs)

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        done, steps = batch + 1, self.params.get("steps")
        is_last = steps is not None and done >= steps
        self._position = (
            (self._epoch + 1, 0) if is_last else (self._epoch, done)
        )
        with _StandIn(self):
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._position = (epoch + 1, 0)
        with _StandIn(self):
            super().on_epoch_end(epoch, logs)

    def write(self, model: Layer, filepath: str) -> None:
        """Writes the file for the current position."""
        best = None if self.best is None else float(self.best)
        if best is not None and not math.isfinite(best):
            best = None
        epoch, batch = self._position
        content = save_and_load.content_of(model)
        entry, tensors = training_state.content_of(model, epoch, batch, best)
        try:
            adapter_file.write(
                filepath,
                AdapterFile(
                    {**content.header, "training": entry},
                    content.tensors | tensors,
                ),
            )
        except ValueError as error:
            warnings.warn(
                f"No checkpoint '{filepath}' was written: {error}.",
                stacklevel=2,
            )


def _check_arguments(
    monitor: str,
    verbose: int,
    save_best_only: bool,
    mode: str | None,
    save_freq: str | int,
    threshold: float | None,
) -> None:
    """Raises a `ValueError` for arguments that `ModelCheckpoint` lets pass."""
    frequency = values.integer(save_freq)
    for name, value, is_right, accepted in (
        ("monitor", monitor, isinstance(monitor, str), "a string"),
        ("verbose", verbose, verbose in (0, 1), "0 or 1"),
        (
            "save_best_only",
            save_best_only,
            isinstance(save_best_only, bool),
            "True or False",
        ),
        ("mode", mode, mode in MODES, f"one of {MODES}"),
        (
            "save_freq",
            save_freq,
            save_freq == "epoch" or (frequency and frequency > 0),
            "'epoch' or a positive integer",
        ),
        (
            "initial_value_threshold",
            threshold,
            threshold is None or values.real(threshold) is not None,
            "a number or None",
        ),
    ):
        if not is_right:
            raise ValueError(
                f"`{name}` must be {accepted}. Received: {name}={value!r}"
            )


class _StandIn:
    """A proxy of the model that `ModelCheckpoint` saves as an adapter file.

    As a context manager it replaces the callback's model.
    """

    def __init__(self, callback: AdapterCheckpoint) -> None:
        self._callback = callback
        self._model = callback.model

    def __enter__(self) -> None:
        self._callback.set_model(self)

    def __exit__(self, *exception: Any) -> None:
        self._callback.set_model(self._model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def save(self, filepath: str, overwrite: bool = True) -> None:
        self._callback.write(self._model, filepath)


def resume(
    model: Layer, filepath: str | os.PathLike, check_base: bool = True
) -> Position:
    """Restores adapters, head and training from an `AdapterCheckpoint`.

    If the batches are the same, training then takes the same steps, loss for
    loss, as if it had never stopped. For the same batches, `fit` must not
    shuffle, or must shuffle with a seed that depends on the epoch. The file
    does not hold the state of other callbacks. On PyTorch, if a `Dropout` has
    no seed, pass an `AdapterCheckpoint` to `fit` again.

    Args:
        model: The compiled base model, or an adapted one as for
            `keras_ether.load_adapter`.
        filepath: String or `PathLike`, a file that
            `keras_ether.callbacks.AdapterCheckpoint` wrote.
        check_base: See `keras_ether.load_adapter`. Defaults to `True`.

    Returns:
        A `Position`. Pass its `epoch` to `fit` as `initial_epoch`. `batch` is
        the number of batches of that epoch already done, `step` the optimizer's
        step, and `best` the best monitored value.

    Raises:
        ValueError: if `keras_ether.load_adapter` would raise it, or if the file
            holds no training state or that of another optimizer. An error
            leaves the model unchanged.

    Example:

    ```python
    model.compile(keras.optimizers.Adam(1e-2), loss)
    position = keras_ether.callbacks.resume(model, "latest.ether.safetensors")
    checkpoint = keras_ether.callbacks.AdapterCheckpoint(
        "latest.ether.safetensors", initial_value_threshold=position.best
    )
    model.fit(
        x,
        y,
        epochs=10,
        initial_epoch=position.epoch,
        shuffle=False,
        callbacks=[checkpoint],
    )
    ```
    """
    tree_of(model)
    check_base = check_boolean(check_base, "check_base")
    content = adapter_file.read(filepath)
    if "training" not in content.header:
        raise ValueError(
            f"Adapter file '{filepath}' holds no training state. Load it with "
            "`keras_ether.load_adapter`."
        )
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no optimizer. "
            "Call `model.compile(...)` first."
        )
    position = training_state.position_of(content.header)
    fill = save_and_load.prepare(model, content, filepath, check_base)
    with changes.all_or_none() as made:
        fill.put_in(made)
        for optimizer in optimizer_slots.optimizers_of([model]):
            made.make(containers.Contents(optimizer))
        try:
            state = training_state.fitting_state(model, content)
            training_state.set_global_generators(model, content, made)
        except ValueError as error:
            raise ValueError(
                f"Training of model '{model.name}' can't resume from "
                f"'{filepath}': {error}"
            ) from error
        for variable, value in state:
            made.assign(variable, value)
    return position
