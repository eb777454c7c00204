"""An optimizer's variables in the files of an adapted model.

Keras stores these variables in order, and a model that reads a file loads them
if it has the same number. An adapted model's optimizer variables belong to
vectors, but a plain model trains kernels and biases. So they are written with
an adapter, where no plain model reads them, and the optimizer's own entry stays
empty. Before Keras saves or loads its layers, a model passes itself to its
first adapter, which then takes its optimizers.

Several nested models may have the same first adapter. Their entries differ by
the adapter's depth in the model. Older files count the models instead, the
outermost first.
"""

import warnings
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_ether.ops.values import to_numpy
from keras_ether.types import Optimizer

if TYPE_CHECKING:
    from keras_ether.adapters.adapter import Adapter

PREFIX = "optimizer_"
SAVE, LOAD = "save_own_variables", "load_own_variables"

# By the adapter's depth in a model, and the optimizer's place in that model.
Optimizers = dict[tuple[int, int], Optimizer]


def take(adapter: "Adapter", name: str) -> Optimizers:
    """Takes the optimizers of the models that were passed to an adapter.

    They omit their own entry when their method `name` is called next.
    """
    models = sorted(adapter.passed.items(), reverse=True)
    adapter.passed.clear()
    return {
        (depth, place): optimizer
        for depth, model in models
        for place, optimizer in model.take(name).items()
    }


def save(optimizers: Optimizers, store: Any) -> None:
    """Writes the optimizers' variables with an adapter."""
    for (depth, place), optimizer in optimizers.items():
        for i, variable in enumerate(optimizer.variables):
            store[f"{PREFIX}depth{depth}_{place}_{i}"] = to_numpy(variable)


def load(optimizers: Optimizers, store: Any) -> None:
    """Reads the optimizers' variables, as far as they fit."""
    models = list(dict.fromkeys(depth for depth, _ in optimizers))
    for (depth, place), optimizer in optimizers.items():
        values = _values(store, f"{PREFIX}depth{depth}_{place}_")
        if not values and place == 0:
            values = _values(store, f"{PREFIX}{models.index(depth)}_")
        if not values:
            continue
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


def _values(store: Any, start: str) -> list[np.ndarray]:
    """The values of the entries `start` followed by 0, 1, 2, ..."""
    saved = {
        name.removeprefix(start): np.asarray(store[name])
        for name in store.keys()  # noqa: SIM118 - not a dictionary
        if name.startswith(start)
    }
    return [saved[str(i)] for i in range(len(saved))]
