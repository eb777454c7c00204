"""What an open bank has changed on a model's layers, and how it is undone.

Banks may share a model. A method is replaced when the first asks for it, and is
back when the last lets go.
"""

import functools
import threading
from collections.abc import Callable
from collections.abc import Iterable

from keras_ether.adapters import per_example
from keras_ether.adapters.changes import Method
from keras_ether.bank import heads
from keras_ether.types import Layer

HELD = "_ether_banks"
REMAT = "rematerialized_call"

_LOCK = threading.Lock()


class Alterations:
    """The replaced methods of one bank.

    Args:
        of_heads: The layers that ask for weights of each example.
        rematerialized: The layers that Keras may run again in the backward
            pass, outside of the bank's call.
    """

    def __init__(
        self, of_heads: Iterable[Layer], rematerialized: Iterable[Layer]
    ) -> None:
        self._held: list[tuple[Layer, str]] = []
        for layer in of_heads:
            self._hold(layer, heads.CALL, functools.partial(heads.call, layer))
        for layer in rematerialized:
            self._hold(layer, REMAT, per_example.rematerialized_call)

    def _hold(self, layer: Layer, name: str, function: Callable) -> None:
        with _LOCK:
            held = layer.__dict__.setdefault(HELD, {})
            change, holders = held.setdefault(
                name, (Method(layer, name, function), set())
            )
            if not holders:
                change.do()
            holders.add(id(self))
            self._held.append((layer, name))

    def undo(self) -> None:
        """Gives the layers their own methods back."""
        with _LOCK:
            while self._held:
                layer, name = self._held.pop()
                held = layer.__dict__[HELD]
                change, holders = held[name]
                holders.discard(id(self))
                if not holders:
                    change.undo()
                    del held[name]
                if not held:
                    del layer.__dict__[HELD]
