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
from keras_ether.ops.each_example import dense_gradient
from keras_ether.ops.each_example import rows_with_gradient
from keras_ether.ops.each_example import set_row
from keras_ether.ops.values import to_numpy
from keras_ether.types import Optimizer
from keras_ether.types import Tensor
from keras_ether.types import Variable

APPLY = "apply"
# Arguments of optimizers that scale a row's gradient by those of others.
MIXING = ("clipnorm", "global_clipnorm")


def hold_still(optimizer: Optimizer | None, rows: int) -> None:
    """Makes an optimizer leave rows unchanged that no gradient reaches.

    Args:
        optimizer: A Keras optimizer, which may wrap another one, or `None`.
        rows: Integer, the leading axis of all variables that it trains.

    Raises:
        ValueError: if it would scale an adapter's gradient by the others'.
    """
    if optimizer is None:
        return
    innermost = _innermost(optimizer)
    for part in (optimizer, innermost):
        for name in MIXING:
            if getattr(part, name, None) is not None:
                raise ValueError(
                    f"The optimizer's `{name}` would scale each adapter's "
                    "gradient by the others'. Use `clipvalue`. Received: "
                    f"{name}={getattr(part, name)}"
                )
    shadowing.shadow(
        innermost, APPLY, functools.partial(_apply, innermost, rows)
    )


def copy_moments(
    optimizer: Optimizer | None, rows: int, row: int, like: int
) -> None:
    """Copies the moments of the row `like` to another row."""
    if optimizer is None:
        return
    for variable in _slots(_innermost(optimizer), rows):
        set_row(variable, row, to_numpy(variable[like]))


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
