"""A callback that measures the adapters during training."""

import os
import statistics
from typing import Any

import keras

from keras_ether.diagnostics.diagnosis import diagnose
from keras_ether.ops import values


class DistanceLogger(keras.callbacks.Callback):
    """Logs the distances of a model's adapters during training.

    It measures each adapted layer at the start and after every epoch. The means
    over the layers are added to the epoch's logs, as `"ether_distance"` and
    `"ether_kernel_distance"`. So the history, the progress bar and all later
    callbacks (`keras.callbacks.TensorBoard`, `CSVLogger`) include them.

    Args:
        every: Integer, number of training steps between further measurements,
            or `None` for epochs only. Defaults to `None`.
        log_dir: String or path, a folder where each layer's distances are
            written for TensorBoard, or `None`. Defaults to `None`.

    Attributes:
        history: List of dictionaries, one for each measurement: `"step"`,
            `"epoch"`, and by layer path, `"distance"`, `‖H − I‖` of the block
            furthest from the identity, and `"kernel_distance"`,
            `‖W' − W‖ / ‖W‖` (without layers whose kernels are quantized).

    Raises:
        ImportError: if `log_dir` is given and TensorBoard is not installed.
        ValueError: if `every` is not a positive integer, if `log_dir` is not a
            path, or, from `fit`, if the model has no adapter.

    Example:

    >>> model.compile("sgd", "mse")
    >>> logger = keras_ether.diagnostics.DistanceLogger()
    >>> history = model.fit(x, x[:, :4], verbose=0, callbacks=[logger])
    >>> [(entry["epoch"], entry["step"]) for entry in logger.history]
    [(0, 0), (1, 1)]
    """

    def __init__(
        self, every: int | None = None, log_dir: str | None = None
    ) -> None:
        super().__init__()
        if every is not None and (values.integer(every) or 0) < 1:
            raise ValueError(
                "`every` must be a positive integer, or None to measure after "
                f"epochs only. Received: every={every!r}"
            )
        if log_dir is not None and not isinstance(log_dir, (str, os.PathLike)):
            raise ValueError(
                "`log_dir` must be a string or a path, or None. Received: "
                f"log_dir={log_dir!r}"
            )
        self.every = every
        self.log_dir = log_dir
        self.history: list = []
        self._writer = None
        if log_dir is not None:
            _tensorboard()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.history = []
        self._step = self._epoch = 0
        if self.log_dir is not None:
            summary = _tensorboard()
            self._writer = summary.Writer(
                summary.DirectoryOutput(str(self.log_dir))
            )
        self._measure()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._step += 1
        if self.every and self._step % self.every == 0:
            self._measure()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._epoch = epoch + 1
        if self.history[-1]["step"] == self._step:
            self.history[-1]["epoch"] = self._epoch
        else:
            self._measure()
        if logs is not None:
            for name in ("distance", "kernel_distance"):
                of_layers = self.history[-1][name].values()
                if of_layers:
                    logs[f"ether_{name}"] = statistics.fmean(of_layers)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measure(self) -> None:
        # On JAX, reading `self.model` copies the trained values to its
        # variables.
        rows = diagnose(self.model, energy=False, print_fn=str).rows
        entry = {
            "step": self._step,
            "epoch": self._epoch,
            "distance": {row.path: row.distance for row in rows},
            "kernel_distance": {
                row.path: row.kernel_distance
                for row in rows
                if row.kernel_distance is not None
            },
        }
        self.history.append(entry)
        if self._writer is None:
            return
        for name in ("distance", "kernel_distance"):
            for path, value in entry[name].items():
                self._writer.add_scalar(
                    f"ether_{name}/{path}", value, self._step
                )
        self._writer.flush()


def _tensorboard() -> Any:
    try:
        from tensorboard import summary
    except ImportError as error:
        raise ImportError(
            "`log_dir` writes files for TensorBoard, which is not installed: "
            "`pip install tensorboard`, or leave `log_dir` out."
        ) from error
    return summary
