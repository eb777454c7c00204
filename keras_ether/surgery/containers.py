"""The lists, dictionaries and sets among an object's attributes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from keras_ether import _keras_internals as internals

CONTAINERS = (OrderedDict, dict, list, set)


class Contents:
    """Stores the attributes of a layer or optimizer, as a change.

    `do` changes nothing. `undo` restores all attributes and the content of the
    lists, dictionaries and sets among them. This is for changes that Keras
    makes.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.before: list[tuple[Any, list]] = []

    def do(self) -> None:
        tracker = internals.tracker_attributes(self.owner)
        held = containers_in((vars(self.owner), tracker))
        self.before = [(container, items(container)) for container in held]

    def undo(self) -> None:
        for container, parts in self.before:
            if not _are_same(items(container), parts):
                refill(container, parts)
        self.before = []


def containers_in(value: object) -> list:
    """Every list, dictionary and set in a value, itself included."""
    return _parts(value)[0]


def leaves(value: object) -> list:
    """The non-containers in a value, or the value itself if it is one."""
    return _parts(value)[1]


def items(container: Any) -> list:
    """The entries of a container, pairs with keys if it is a dictionary."""
    is_dict = isinstance(container, dict)
    return list(container.items() if is_dict else container)


def refill(container: Any, parts: list) -> None:
    """Replaces a container's `items`."""
    # Bypasses the methods of Keras's own containers, which track new entries.
    base: Any = next(b for b in CONTAINERS if isinstance(container, b))
    base.clear(container)
    if base is list:
        list.extend(container, parts)
    else:
        base.update(container, parts)


def _are_same(parts: Sequence, others: Sequence) -> bool:
    """Whether the objects are identical, without comparing them by value."""
    return len(parts) == len(others) and all(
        one is other
        or (type(one) is type(other) is tuple and _are_same(one, other))
        for one, other in zip(parts, others, strict=True)
    )


def _parts(whole: object) -> tuple[list, list]:
    containers: dict[int, Any] = {}
    others, todo = [], [whole]
    while todo:
        value: Any = internals.unwrapped(todo.pop())
        if isinstance(value, tuple):
            todo.extend(value)
        elif not isinstance(value, CONTAINERS):
            others.append(value)
        elif id(value) not in containers:
            containers[id(value)] = value
            inner = value.values() if isinstance(value, dict) else value
            todo.extend(inner)
    return list(containers.values()), others
