"""Reversible changes of users' objects, and the owners that hold them.

Every change of a user's model (a flag, a class, a method, a sub-layer, a
compiled function, an optimizer's slots, a value) is one `Change`. A
`Transaction` makes several changes, all or none. Lasting changes are stored on
the layer that they alter, under a name, with their owners. They are undone when
the last owner releases them.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import Protocol

from keras_ether import _keras_internals as internals
from keras_ether.adapters.value_change import Backup
from keras_ether.adapters.value_change import Value
from keras_ether.types import Layer
from keras_ether.types import Variable

RECORD = "_ether_changes"
MISSING: Any = object()


class Change(Protocol):
    """One alteration of one object, and its inverse.

    Both methods may run any number of times, and may be interrupted anywhere. A
    second `do` changes nothing, nor does `undo` before `do`.
    """

    def do(self) -> None: ...

    def undo(self) -> None: ...


class Inverse:
    """The undoing of a change, as a change."""

    def __init__(self, change: Change) -> None:
        self.do = change.undo
        self.undo = change.do


class Attribute:
    """Sets an entry of an object's dictionary, unseen by Keras's trackers.

    The value `MISSING` deletes it.
    """

    def __init__(self, owner: object, name: str, value: Any) -> None:
        self.entries = vars(owner)
        self.name = name
        self.value = value
        self.before: list[Any] = []

    def do(self) -> None:
        # It may be done already, if its undoing was interrupted.
        if not self.before:
            self.before = [self.entries.get(self.name, MISSING)]
        self._set(self.value)

    def undo(self) -> None:
        if self.before:
            self._set(self.before[0])
            self.before = []

    def _set(self, value: Any) -> None:
        if value is MISSING:
            self.entries.pop(self.name, None)
        else:
            self.entries[self.name] = value


class Method(Attribute):
    """Makes `layer.name(...)` call `function(original, ...)`.

    `original` is the method without this change, looked up at each call, since
    the class of the layer or optimizer may change.
    """

    def __init__(self, layer: Any, name: str, function: Callable) -> None:
        super().__init__(layer, name, MISSING)
        self.layer = layer
        # Keras marks its default methods by attributes, which it looks for, for
        # example, before it makes a configuration from the constructor's
        # arguments.
        self.value = functools.wraps(getattr(layer, name))(
            lambda *args, **kwargs: function(self.original, *args, **kwargs)
        )

    @property
    def original(self) -> Callable:
        before = self.before[0] if self.before else MISSING
        if before is not MISSING:
            return before
        return getattr(type(self.layer), self.name).__get__(self.layer)

    def undo(self) -> None:
        # Another function may have replaced this one.
        if self.entries.get(self.name) is self.value:
            super().undo()


class Class:
    """Makes an object an instance of another class."""

    def __init__(self, owner: Any, new: type, before: type) -> None:
        self.owner, self.new, self.before = owner, new, before

    def do(self) -> None:
        self.owner.__class__ = self.new

    def undo(self) -> None:
        if type(self.owner) is not self.before:
            self.owner.__class__ = self.before


class SubLayer:
    """Adds a sub-layer to a layer, under the name of an attribute."""

    def __init__(self, layer: Layer, name: str, sublayer: Layer) -> None:
        self.layer, self.name, self.sublayer = layer, name, sublayer

    def do(self) -> None:
        if getattr(self.layer, self.name, None) is not self.sublayer:
            internals.add_sublayer(self.layer, self.name, self.sublayer)

    def undo(self) -> None:
        internals.remove_sublayer(self.layer, self.name, self.sublayer)


class Flag:
    """Sets whether a variable trains."""

    def __init__(self, variable: Variable, trainable: bool) -> None:
        self.variable, self.trainable = variable, trainable
        self.before: list[bool] = []

    def do(self) -> None:
        if not self.before:
            self.before = [self.variable.trainable]
        self._set(self.trainable)

    def undo(self) -> None:
        if self.before:
            self._set(self.before[0])
            self.before = []

    def _set(self, trainable: bool) -> None:
        if self.variable.trainable != trainable:
            self.variable.trainable = trainable


class Member:
    """Adds an element to a set that lacks it."""

    def __init__(self, elements: Any, element: Any) -> None:
        self.elements, self.element = elements, element

    def do(self) -> None:
        self.elements.add(self.element)

    def undo(self) -> None:
        self.elements.discard(self.element)


class Owner:
    """One call of `apply` or `load_adapter`, which holds changes of layers.

    Attributes:
        adapted: The layers that have its adapters. Without any, it has released
            everything.
        layers: The layers whose changes it holds.
    """

    def __init__(self) -> None:
        self.adapted: weakref.WeakSet = weakref.WeakSet()
        self.layers: weakref.WeakSet = weakref.WeakSet()


class Held:
    """Changes of one layer under one name, and their owners.

    Attributes:
        changes: The changes, in the order in which they were made.
        owners: The owners that hold them.
        data: Other data that is stored with them.
        active: Whether the changes are made now. They are not while they are
            suspended.
    """

    def __init__(self, data: Any = None) -> None:
        self.changes: list[Change] = []
        self.owners: set[Owner] = set()
        self.data = data
        self.active = True


def held(layer: Layer, name: str) -> Held | None:
    """The changes of a layer that are held under a name, or `None`."""
    return vars(layer).get(RECORD, {}).get(name)


@contextlib.contextmanager
def all_or_none() -> Iterator["Transaction"]:
    """A context whose changes are undone if the `with` block raises."""
    made = Transaction()
    try:
        yield made
    except BaseException:
        made.undo()
        raise
    finally:
        if made.backup.file is not None:
            made.backup.file.close()


class Transaction:
    """Changes that are made one after the other.

    Attributes:
        layers: The layers whose lasting changes were made or undone.
        backup: The values from before.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.backup = Backup()
        self._made: list[Change] = []

    def undo(self) -> None:
        """Undoes all changes, the last one first."""
        while self._made:
            self._made.pop().undo()

    def make(self, change: Change) -> None:
        """Makes a change, undone if anything after it fails."""
        self._made.append(change)
        change.do()

    def set(self, owner: object, name: str, value: Any) -> None:
        """Sets an attribute, see `Attribute`."""
        self.make(Attribute(owner, name, value))

    def assign(self, variable: Variable, value: Any) -> None:
        """Sets the value of a variable, see `Value`."""
        self.make(Value(variable, value, self.backup))

    def hold(
        self,
        layer: Layer,
        name: str,
        owner: Owner,
        changes: Callable[[], Iterable[Change]],
        data: Any = None,
    ) -> Held:
        """Makes changes of a layer that last until no owner holds them.

        Args:
            layer: A Keras layer.
            name: String, the purpose of the changes.
            owner: An owner that holds them, besides others.
            changes: Function that returns the changes. It is called if no other
                owner holds some of this name.
            data: Other data that is stored with them.
        """
        found = held(layer, name)
        if found is None:
            found = Held(data)
            record = vars(layer).get(RECORD, {})
            self.set(layer, RECORD, record | {name: found})
            for change in changes():
                found.changes.append(change)
                self.make(change)
            if found.changes:
                self.layers.append(layer)
        both = (found.owners, owner), (owner.layers, layer)
        for elements, element in both:
            if element not in elements:
                self.make(Member(elements, element))
        return found

    def release(
        self, layer: Layer, name: str, owners: Iterable[Owner] | None = None
    ) -> None:
        """Lets owners go, all of them by default, and undoes what none holds.

        Owners whose adapted layers are gone from memory hold nothing.
        """
        found = held(layer, name)
        if found is None:
            return
        leaving = set(found.owners if owners is None else owners)
        leaving |= {owner for owner in found.owners if not owner.adapted}
        for owner in leaving & found.owners:
            self.make(Inverse(Member(found.owners, owner)))
        if found.owners:
            return
        self.suspend(layer, name)
        record = {n: h for n, h in vars(layer)[RECORD].items() if n != name}
        self.set(layer, RECORD, record or MISSING)

    def suspend(self, layer: Layer, name: str) -> None:
        """Undoes changes of a layer that their owners go on holding."""
        found = held(layer, name)
        if found is not None and found.active:
            undoing = [Inverse(change) for change in reversed(found.changes)]
            self._switch(layer, found, undoing, False)

    def resume(self, layer: Layer, name: str) -> None:
        """Makes suspended changes of a layer again."""
        found = held(layer, name)
        if found is not None and not found.active:
            self._switch(layer, found, found.changes, True)

    def _switch(
        self,
        layer: Layer,
        found: Held,
        changes: Iterable[Change],
        active: bool,
    ) -> None:
        for change in changes:
            self.make(change)
        self.set(found, "active", active)
        if found.changes:
            self.layers.append(layer)
