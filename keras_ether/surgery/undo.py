"""All or nothing: a model is restored if a change fails half way."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.surgery import attributes
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Variable


@contextlib.contextmanager
def on_error(tree: LayerTree) -> Iterator[contextlib.ExitStack]:
    """Restores a model if the `with` block raises.

    Layers and their classes, flags, compiled functions and optimizers with
    their slots are restored automatically. The values of variables are restored
    if they are set by `assign`.

    Args:
        tree: The layers of the model, as they are before the change.

    Yields:
        A `contextlib.ExitStack` for further steps of undoing.
    """
    optimizers = optimizer_slots.optimizers_of(tree)
    owners = [*tree.everything, *optimizers]
    states = [attributes.taken(owner) for owner in owners]
    flags = [(v, v.trainable) for v in tree.model.variables]
    with contextlib.ExitStack() as undo:
        undo.callback(_put_back, states, flags)
        for optimizer in optimizers:
            _keep(undo, internals.update_count(optimizer))
        yield undo
        undo.pop_all()


def assign(undo: contextlib.ExitStack, variable: Variable, value: Any) -> None:
    """Sets a variable, and makes `undo` restore its current value.

    Args:
        undo: The `contextlib.ExitStack` of `on_error`.
        variable: A Keras variable.
        value: The new value.
    """
    _keep(undo, variable)
    variable.assign(value)


def _keep(undo: contextlib.ExitStack, variable: Variable) -> None:
    value = variable.value
    # In host memory, which is larger. An array spread over several processes
    # can't be copied there, and need not be: JAX does not change arrays.
    if getattr(value, "is_fully_addressable", True):
        value = to_numpy(variable)
    undo.callback(variable.assign, value)


def _put_back(
    states: list[attributes.Attributes], flags: list[tuple[Variable, bool]]
) -> None:
    for state in states:
        attributes.put_back(state)
    for variable, flag in flags:
        if variable.trainable != flag:
            variable.trainable = flag
