"""Warnings that are given when training starts.

They are about a far too low learning rate, and about kernels that train because
`trainable` was set after `apply`: Keras's setter thaws all layers inside.

KerasHub tasks compile themselves with rates for full fine-tuning, and a model
may be compiled before or after `apply`. So the final rate is known only when
`fit` or `train_on_batch` is called. Both call `make_train_function`, which
Keras lets subclasses override. A replacement of this method on each model of
the tree compares one value, once for each optimizer.

A compiled model that is later built around an adapted model is not covered.
This would need a hook on `keras.Model` itself, which would change unrelated
models.
"""

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.ops.values import to_numpy
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Model
from keras_ether.types import Variable

START = "make_train_function"
# A rate is low if it is below the method's own by more than this factor.
FACTOR = 10
# A warning names the first line outside these packages.
INSIDE = ("keras", "keras_hub", "keras_ether")
# A schedule is evaluated at these steps. They find a warm-up's peak to a few
# percent, anywhere within a million steps.
STEPS = sorted({0, *(int(2 ** (i / 8)) for i in range(8 * 20 + 1))})


def change_for(model: Model) -> changes.Change:
    """Makes an adapted model, or one in it, warn when it trains."""
    return changes.Method(
        model, START, functools.partial(_start, weakref.ref(model), [], [])
    )


def _start(
    model: weakref.ref,
    seen: list[weakref.ref],
    thawed: list[str],
    make_train_function: Callable,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Warns, and calls the model's own method.

    It warns of kernels once, and of the rate once for each optimizer.
    """
    owner = model()
    if not thawed and getattr(owner, "train_function", True) is None:
        found = _thawed(owner)
        if found:
            _warn_of_thawed(owner, found)
        thawed += found
    optimizer = getattr(owner, "optimizer", None)
    is_new = optimizer is not None and all(o() is not optimizer for o in seen)
    if is_new:
        _warn(owner)
        seen[:] = [weakref.ref(optimizer)]
    return make_train_function(*args, **kwargs)


def _thawed(model: Model) -> list[str]:
    """The paths of adapted layers whose kernels train."""
    trained = {id(variable) for variable in model.trainable_variables}
    return [
        path
        for path, layer in LayerTree(model).adapted.items()
        if id(layer.base_kernel) in trained
    ]


def _warn_of_thawed(model: Model, paths: list[str]) -> None:
    warnings.warn(
        f"Model '{model.name}' also trains the kernels of adapted layers: "
        f"{targets_lib.shorten(paths)}. Their `trainable` was set after "
        "`keras_ether.apply`, which had frozen them, so `keras_ether.remove` "
        "won't restore the base. To train the adapters alone, call "
        "`keras_ether.remove` now, and `keras_ether.apply` after you set "
        "`trainable`.",
        stacklevel=_level_of_user(),
    )


def _warn(model: Model) -> None:
    adapters = [
        layer.ether
        for layer in LayerTree(model).adapted.values()
        if layer.ether.trainable_weights
    ]
    if not adapters:
        return
    vector = adapters[0].trainable_weights[0]
    rate = _highest_rate(model.optimizer, vector)
    first, name = max(
        (a.method.learning_rate_for(a.config.rank_blocks), a.method.name)
        for a in adapters
    )
    # The optimizer's rate is a float32.
    if rate is None or rate >= np.float32(first / FACTOR):
        return
    warnings.warn(
        f"Model '{model.name}' trains with a learning rate of {rate:.2g}, "
        f"which is low for '{name}': its vectors would hardly move. With "
        f"Adam, start at about {first:.2g}: pass it to `model.compile`.",
        stacklevel=_level_of_user(),
    )


def _highest_rate(optimizer: Any, variable: Variable) -> float | None:
    """The highest learning rate of a variable in training, if it is known."""
    # Wrappers are looked into.
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


def _level_of_user() -> int:
    """The `stacklevel` of the first caller outside Keras and this package."""
    frame: Any = inspect.currentframe()
    frame, level = frame.f_back, 1
    while frame.f_back is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in INSIDE:
            break
        frame, level = frame.f_back, level + 1
    return level
