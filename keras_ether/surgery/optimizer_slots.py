"""The slots of optimizers, and their reset.

Slots are the variables that an optimizer's `build` makes for each trained
variable: moments, averages, accumulated gradients. All other attributes are
settings and don't change: the learning rate, schedule, exclusions, and
variables that a subclass makes in `__init__`.
"""

from collections.abc import Iterable
from typing import Any

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.surgery import containers
from keras_ether.types import Optimizer
from keras_ether.types import Variable


def optimizers_of(models: Iterable[keras.Model]) -> list[Optimizer]:
    """Every optimizer among the attributes of models, wrapped ones too.

    A wrapper comes before the optimizer that it wraps.
    """
    found: dict[int, Optimizer] = {}
    todo: list[Any] = list(models)
    while todo:
        owner = todo.pop(0)
        for part in containers.leaves(vars(owner)):
            is_optimizer = isinstance(part, keras.optimizers.Optimizer)
            if is_optimizer and id(part) not in found:
                found[id(part)] = part
                todo.append(part)
    return list(found.values())


def drop(made: changes.Transaction, optimizer: Optimizer) -> None:
    """Makes a built optimizer unbuilt again.

    `fit` then builds it for the trained variables and allocates its slots.
    Besides the slots only the iteration count changes: it starts from 0, since
    it corrects the bias of new moments. An unbuilt optimizer is not changed,
    nor are those that it wraps.
    """
    if not optimizer.built:
        return
    made.assign(internals.update_count(optimizer), 0)
    made.make(containers.Contents(optimizer))
    _forget(optimizer, slots_of(optimizer))


def slots_of(optimizer: Optimizer) -> set[int]:
    """The ids of the variables that `build` has made.

    Keras's own classes make no others but a count and a rate. A subclass may
    make some in `__init__`: there, slots begin at the first variable that is
    named after one that is trained. What the `build` of a subclass makes before
    it calls that of its base counts as a setting.
    """
    settings = (
        internals.update_count(optimizer),
        internals.rate_set(optimizer),
    )
    own = [
        variable
        for variable in internals.tracked_variables(optimizer)
        if not any(variable is setting for setting in settings)
    ]
    start = 0
    if not type(optimizer).__module__.startswith("keras."):
        start = next(
            (i for i, v in enumerate(own) if _is_named(v, optimizer)), len(own)
        )
    return {id(variable) for variable in own[start:]}


def _is_named(slot: Variable, optimizer: Optimizer) -> bool:
    """Whether a variable is named after one that an optimizer trains."""
    for variable in internals.trained_variables(optimizer):
        path = getattr(variable, "path", variable.name).replace("/", "_")
        if slot.name.startswith(f"{path}_") and slot.shape == variable.shape:
            return True
    return False


def _forget(optimizer: Optimizer, slots: set[int]) -> None:
    """Removes variables from an optimizer's attributes, and unbuilds it."""

    def is_slot(part: object) -> bool:
        return any(id(leaf) in slots for leaf in containers.leaves(part))

    own = vars(optimizer)
    for container in containers.containers_in(own):
        if container is own:
            continue
        parts = containers.items(container)
        values = container.values() if isinstance(container, dict) else parts
        remaining = [
            part
            for part, value in zip(parts, list(values), strict=True)
            # Inner containers stay, and lose their own entries.
            if isinstance(value, containers.CONTAINERS) or not is_slot(value)
        ]
        if len(remaining) < len(parts):
            containers.refill(container, remaining)
    for name, value in list(own.items()):
        if not isinstance(value, containers.CONTAINERS) and is_slot(value):
            own[name] = None
    internals.set_unbuilt(optimizer, slots)
