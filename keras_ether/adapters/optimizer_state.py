"""An optimizer's variables in the files of an adapted model.

Keras stores these variables in order, and a model that reads a file loads them
if it has the same number. An adapted model's optimizer variables belong to
vectors, but a plain model trains kernels and biases. So they are written with
an adapter, where no plain model reads them, and the optimizer's own entry stays
empty. The model passes its optimizer to one of its adapters before Keras saves
or loads them.
"""

import warnings
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_ether.ops.values import to_numpy

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter

PREFIX = "optimizer_"


def save(adapter: "Adapter", store: Any) -> None:
    """Writes the variables of the optimizers that the model passed."""
    optimizers, adapter.optimizers[:] = list(adapter.optimizers), []
    for i, optimizer in enumerate(optimizers):
        for j, variable in enumerate(optimizer.variables):
            store[f"{PREFIX}{i}_{j}"] = to_numpy(variable)


def load(adapter: "Adapter", store: Any) -> None:
    """Reads the variables of the optimizers that the model passed."""
    optimizers, adapter.optimizers[:] = list(adapter.optimizers), []
    for i, optimizer in enumerate(optimizers):
        start = f"{PREFIX}{i}_"
        saved = {
            name.removeprefix(start): np.asarray(store[name])
            for name in store.keys()  # noqa: SIM118 - not a dictionary
            if name.startswith(start)
        }
        if not saved:
            continue
        values = [saved[str(j)] for j in range(len(saved))]
        shapes = [tuple(v.shape) for v in optimizer.variables]
        if shapes != [value.shape for value in values]:
            warnings.warn(
                f"Skipping variable loading for optimizer '{optimizer.name}': "
                f"its variables have shapes {shapes}. Received: "
                f"{[value.shape for value in values]}",
                stacklevel=2,
            )
            continue
        for variable, value in zip(optimizer.variables, values, strict=True):
            variable.assign(value)
