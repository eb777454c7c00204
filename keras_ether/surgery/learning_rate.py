"""The highest learning rate that an optimizer has for a variable."""

from typing import Any

import keras
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.ops.values import to_numpy
from keras_ether.types import Variable

# A schedule is evaluated at these steps. They find a warm-up's peak to a few
# percent, anywhere within a million steps.
STEPS = sorted({0, *(int(2 ** (i / 8)) for i in range(8 * 20 + 1))})


def highest_for(optimizer: Any, variable: Variable) -> float | None:
    """The highest learning rate of a variable in training, if it is known.

    Args:
        optimizer: Any Keras optimizer. Wrappers are looked into.
        variable: The variable.

    Returns:
        The rate, or the highest rate of a schedule, or `None` if it is unknown.
    """
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        optimizer = internals.optimizer_for(optimizer, variable)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    rate = internals.rate_set(optimizer)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return _highest_of(rate)
    # An optimizer of the user's may compute its rate in another way.
    is_own = getattr(optimizer, "learning_rate", None) is rate
    if not is_own or not isinstance(rate, keras.Variable):
        return None
    return float(to_numpy(rate))


def _highest_of(schedule: Any) -> float | None:
    try:
        steps = [ops.convert_to_tensor(step, "int32") for step in STEPS]
        return max(float(to_numpy(schedule(step))) for step in steps)
    except Exception:  # A schedule of the user's may want other arguments.
        return None
