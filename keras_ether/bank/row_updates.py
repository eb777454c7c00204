"""Optimizers that leave rows unchanged if no example of a batch names them.

Adam moves a weight whose gradient is zero until its moments have decayed, and
they decay at each step. An adapter trained alone would not make that step. So
every row that no gradient reaches gets its values, moments and averages back.
"""

import functools
from collections.abc import Callable

from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapters import shadowing
from keras_ether.ops.backend import snapshot
from keras_ether.ops.backend import tensor
from keras_ether.ops.each_example import set_row
from keras_ether.ops.row_gradients import clip_rows
from keras_ether.ops.row_gradients import dense_gradient
from keras_ether.ops.row_gradients import rows_with_gradient
from keras_ether.ops.values import to_numpy
from keras_ether.types import Optimizer
from keras_ether.types import Tensor
from keras_ether.types import Variable

APPLY = "apply"
# Arguments of optimizers that scale gradients by their norms.
EACH, ALL = "clipnorm", "global_clipnorm"


def hold_still(optimizer: Optimizer | None, rows: int) -> None:
    """Makes an optimizer leave rows unchanged that no gradient reaches.

    `clipnorm` and `global_clipnorm` then mean the norms of each row.

    Args:
        optimizer: A Keras optimizer, which may wrap another one, or `None`.
        rows: Integer, the leading axis of all variables that it trains.
    """
    if optimizer is None:
        return
    innermost = _innermost(optimizer)
    shadowing.shadow(
        innermost, APPLY, functools.partial(_apply, innermost, rows)
    )
    shadowing.shadow(
        innermost,
        internals.CLIP_GRADIENTS,
        functools.partial(_clip, innermost),
    )


def copy_moments(
    optimizer: Optimizer | None, rows: int, row: int, like: int
) -> None:
    """Copies the moments of the row `like` to another row."""
    if optimizer is None:
        return
    variables = list(_slots(_innermost(optimizer), rows))
    set_row(variables, row, [to_numpy(v[like]) for v in variables])


def _apply(
    optimizer: Optimizer,
    rows: int,
    apply: Callable,
    grads: list[Tensor | None],
    trainable_variables: list[Variable] | None = None,
) -> None:
    if not optimizer.built:
        # `apply` would do this too, but the moments are read before it.
        optimizer.build(trainable_variables)
    trained = trainable_variables or internals.trained_variables(optimizer)
    # On TensorFlow gradients are slices, one for each example. Adam would
    # square each slice, and not their sum, the gradient of the row.
    grads = [None if g is None else dense_gradient(g) for g in grads]
    gradients = [g for g in grads if g is not None]
    accumulated = [
        ops.convert_to_tensor(g)
        for g in internals.accumulated_gradients(optimizer)
    ]
    reached = rows_with_gradient([*gradients, *accumulated])
    held = [*trained, *_slots(optimizer, rows)]
    before = [snapshot(variable) for variable in held]
    apply(grads, trainable_variables)
    for variable, value in zip(held, before, strict=True):
        is_reached = ops.reshape(reached, (-1,) + (1,) * (len(value.shape) - 1))
        variable.assign(ops.where(is_reached, tensor(variable), value))


def _clip(
    optimizer: Optimizer, clip: Callable, grads: list[Tensor | None]
) -> list[Tensor | None]:
    """As Keras clips them, but each row by its own norm."""
    there = [g for g in grads if g is not None]
    if getattr(optimizer, EACH, None):
        clipped = [clip_rows([g], optimizer.clipnorm)[0] for g in there]
    elif getattr(optimizer, ALL, None):
        clipped = clip_rows(there, optimizer.global_clipnorm)
    else:
        return clip(grads)
    found = iter(clipped)
    return [None if g is None else next(found) for g in grads]


def _slots(optimizer: Optimizer, rows: int) -> list[Variable]:
    return [
        variable
        for variable in optimizer.variables
        if len(variable.shape) and variable.shape[0] == rows
    ]


def _innermost(optimizer: Optimizer) -> Optimizer:
    while getattr(optimizer, "inner_optimizer", None) is not None:
        optimizer = optimizer.inner_optimizer
    return optimizer
