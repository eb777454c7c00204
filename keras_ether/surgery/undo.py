"""All or nothing: a model that is put back if changing it fails half way."""

import contextlib

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.surgery import attributes
from keras_ether.surgery import slots
from keras_ether.surgery.targets import walk


@contextlib.contextmanager
def on_error(model):
    """Puts a model back as it was if the `with` block raises.

    Layers and their classes, flags, compiled functions and optimizers with
    their slots are put back of themselves. The values of variables are if they
    are set by `assign`.

    Args:
        model: A Keras model or layer.

    Yields:
        A `contextlib.ExitStack` for what is to be undone besides.
    """
    optimizers = slots.optimizers_of(model)
    layers = [model, *walk(model).values()]
    states = [attributes.taken(owner) for owner in [*layers, *optimizers]]
    flags = [(variable, variable.trainable) for variable in model.variables]
    with contextlib.ExitStack() as undo:
        undo.callback(_put_back, states, flags)
        for optimizer in optimizers:
            _keep(undo, internals.update_count(optimizer))
        yield undo
        undo.pop_all()


def assign(undo, variable, value):
    """Sets a variable, and has `undo` put its value of now back.

    Args:
        undo: The `contextlib.ExitStack` of `on_error`.
        variable: A Keras variable.
        value: What it is set to.
    """
    _keep(undo, variable)
    variable.assign(value)


def _keep(undo, variable):
    value = variable.value
    # In the memory of the host, where there is more of it; but an array of
    # several processes can't come there, and JAX does not change arrays.
    if getattr(value, "is_fully_addressable", True):
        value = to_numpy(variable)
    undo.callback(variable.assign, value)


def _put_back(states, flags):
    for state in states:
        attributes.put_back(state)
    for variable, flag in flags:
        if variable.trainable != flag:
            variable.trainable = flag
