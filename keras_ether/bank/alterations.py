"""The methods of a model's layers that an open bank replaces.

Banks may share a model. The first bank replaces a method, and the last bank
restores it.
"""

import functools
import threading
from collections.abc import Iterable

from keras_ether.adapters import changes
from keras_ether.adapters import per_example
from keras_ether.bank import heads
from keras_ether.types import Layer

REMAT = "rematerialized_call"

_LOCK = threading.Lock()
# Alterations to undo as soon as no other is made or undone.
_LEFT: list["Alterations"] = []


class Alterations:
    """The replaced methods of one bank.

    Args:
        of_heads: The layers that use weights of each example.
        rematerialized: The layers that Keras may run again in the backward
            pass, outside of the bank's call.
    """

    def __init__(
        self, of_heads: Iterable[Layer], rematerialized: Iterable[Layer]
    ) -> None:
        self._owner = changes.Owner()
        self._held: list[tuple[Layer, str]] = []
        with _LOCK, changes.all_or_none() as made:
            for layer in of_heads:
                answer = functools.partial(heads.call, layer)
                self._replace(made, changes.Method(layer, heads.CALL, answer))
            for layer in rematerialized:
                again = per_example.rematerialized_call
                self._replace(made, changes.Method(layer, REMAT, again))
        _undo_those_left()

    def _replace(
        self, made: changes.Transaction, method: changes.Method
    ) -> None:
        layer, key = method.layer, f"{method.name} of banks"
        self._owner.adapted.add(layer)
        made.hold(layer, key, self._owner, lambda: (method,))
        self._held.append((layer, key))

    def undo(self) -> None:
        """Restores the layers' own methods, now or very soon.

        Garbage may be collected while this or another bank changes a layer.
        """
        _LEFT.append(self)
        _undo_those_left()

    def _undo(self) -> None:
        with changes.all_or_none() as made:
            for layer, key in self._held:
                made.release(layer, key, {self._owner})
        self._held = []


def _undo_those_left() -> None:
    while _LEFT and _LOCK.acquire(blocking=False):
        try:
            _LEFT.pop()._undo()
        except IndexError:
            # Another thread was quicker.
            pass
        finally:
            _LOCK.release()
