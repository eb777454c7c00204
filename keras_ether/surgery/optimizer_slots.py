"""The slots of optimizers, and their reset.

Slots are the variables that an optimizer's `build` makes for the variables that
it trains: moments, averages, accumulated gradients. All other attributes are
settings and stay: its learning rate, schedule, exclusions, and the variables
that a subclass makes in `__init__`.
"""

import math
import warnings

import keras

from keras_ether import _keras_internals as internals
from keras_ether.surgery import attributes
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Optimizer
from keras_ether.types import Variable


def optimizers_of(tree: LayerTree) -> list[keras.optimizers.Optimizer]:
    """Every optimizer of a model and of the models in it, wrapped ones too.

    A wrapper comes before the optimizer that it wraps.
    """
    found: dict[int, keras.optimizers.Optimizer] = {}
    for model in tree.models:
        found |= _optimizers_in(model)
    return list(found.values())


def drop(optimizer: Optimizer) -> None:
    """Makes a built optimizer unbuilt again.

    `fit` then builds it for the trained variables, and only then allocates
    slots. Apart from the slots only the count of updates changes: it starts
    from 0, since it corrects the bias of new moments. An unbuilt optimizer is
    not touched.

    Args:
        optimizer: A Keras optimizer. Those that it wraps are not changed.
    """
    if not optimizer.built:
        return
    slots = _slots(optimizer)
    _forget(optimizer, slots)
    internals.update_count(optimizer).assign(0)


def _slots(optimizer: Optimizer) -> set[int]:
    """The ids of the variables that `build` has made.

    Nothing marks these variables, so the optimizer is built again for one small
    variable, and then restored: variables that it no longer holds in between
    are slots.
    """
    named = _named_after_trained(optimizer)
    since = _tracked_since(optimizer, named)
    before = {
        name: (value, _variables_in(value))
        for name, value in internals.own_attributes(optimizer).items()
    }
    states = [
        attributes.taken(part)
        for part in (optimizer, *_optimizers_in(optimizer).values())
    ]
    smallest = sorted(internals.trained_variables(optimizer), key=_size)[:1]
    try:
        _forget(optimizer, named)
        start = set(_variables_in(list(vars(optimizer).values())))
        with warnings.catch_warnings(), internals.strategy_scope(optimizer):
            warnings.simplefilter("ignore")
            optimizer.build(smallest)
        after = internals.own_attributes(optimizer)
        held = _variables_in(list(after.values()))
        found = {i for _, own in before.values() for i in own} - held.keys()
        for name, (value, own) in before.items():
            # A list from `__init__` that `build` fills holds slots.
            is_filled = _variables_in(value).keys() - start
            if after.get(name) is value and is_filled:
                found |= own.keys()
    except Exception:
        # This `build` can't be tried; if that is an error, `fit` will raise it.
        found = since
    finally:
        for state in states:
            attributes.put_back(state)
    trained = {id(v) for v in internals.trained_variables(optimizer)}
    return (named | found) - trained


def _named_after_trained(optimizer: Optimizer) -> set[int]:
    """The ids of variables made by `add_variable_from_reference`."""
    shapes: dict[tuple, list[str]] = {}
    for variable in internals.trained_variables(optimizer):
        path = getattr(variable, "path", variable.name).replace("/", "_")
        shapes.setdefault(tuple(variable.shape), []).append(f"{path}_")
    return {
        id(variable)
        for variable in internals.tracked_variables(optimizer)
        if variable.name.startswith(
            tuple(shapes.get(tuple(variable.shape), ()))
        )
    }


def _tracked_since(optimizer: Optimizer, named: set[int]) -> set[int]:
    """The ids of the first of these variables and of all made after it."""
    ids = [id(v) for v in internals.tracked_variables(optimizer)]
    first = next((i for i, known in enumerate(ids) if known in named), len(ids))
    return set(ids[first:])


def _forget(optimizer: Optimizer, slots: set[int]) -> None:
    """Removes variables from an optimizer's attributes, and unbuilds it."""

    def is_slot(part: object) -> bool:
        return any(id(leaf) in slots for leaf in attributes.leaves(part))

    own = vars(optimizer)
    for container in attributes.containers_in(own):
        if container is own:
            continue
        parts = attributes.items(container)
        values = container.values() if isinstance(container, dict) else parts
        kept = [
            part
            for part, value in zip(parts, list(values), strict=True)
            # Inner containers stay, and lose their own entries.
            if isinstance(value, attributes.CONTAINERS) or not is_slot(value)
        ]
        if len(kept) < len(parts):
            attributes.refill(container, kept)
    for name, value in list(own.items()):
        if not isinstance(value, attributes.CONTAINERS) and is_slot(value):
            own[name] = None
    internals.set_unbuilt(optimizer, slots)


def _optimizers_in(owner: object) -> dict[int, Optimizer]:
    """The optimizers among an object's attributes, and inner ones, by id."""
    found, todo = {}, [owner]
    while todo:
        for part in attributes.leaves(vars(todo.pop(0))):
            is_optimizer = isinstance(part, keras.optimizers.Optimizer)
            if is_optimizer and part is not owner and id(part) not in found:
                found[id(part)] = part
                todo.append(part)
    return found


def _variables_in(value: object) -> dict[int, Variable]:
    """The variables that a value holds, by id."""
    return {
        id(leaf): leaf
        for leaf in attributes.leaves(value)
        if isinstance(leaf, keras.Variable)
    }


def _size(variable: Variable) -> int:
    return math.prod(variable.shape)
