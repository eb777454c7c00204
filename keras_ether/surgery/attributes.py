"""Records of an object's attributes, from which they are restored."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_ether import _keras_internals as internals

CONTAINERS = (OrderedDict, dict, list, set)


@dataclass(frozen=True)
class Attributes:
    """An object's class and attributes at one moment.

    Attributes:
        owner: The object.
        kind: Its class.
        contents: Pairs of a container and its items: the object's dictionary,
            and the lists, dictionaries and sets among its attributes, which
            others may hold too.
    """

    owner: object
    kind: type
    contents: tuple


def taken(owner: object) -> Attributes:
    """The current attributes of a Keras layer or optimizer."""
    tracked = internals.tracker_attributes(owner)
    containers = containers_in((vars(owner), tracked))
    return Attributes(
        owner, type(owner), tuple((c, items(c)) for c in containers)
    )


def put_back(before: Attributes) -> None:
    """Restores an object's class and attributes."""
    if type(before.owner) is not before.kind:
        before.owner.__class__ = before.kind
    for container, parts in before.contents:
        if not _same(items(container), parts):
            refill(container, parts)


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


def _same(parts: Sequence, others: Sequence) -> bool:
    """Whether the objects are identical, without comparing them by value."""
    return len(parts) == len(others) and all(
        one is other
        or (type(one) is type(other) is tuple and _same(one, other))
        for one, other in zip(parts, others, strict=True)
    )
