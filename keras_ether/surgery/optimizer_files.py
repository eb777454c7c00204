"""Models whose files hold the optimizers' variables with an adapter.

See `keras_ether.adapters.optimizer_state`.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

from keras_ether.adapters import changes
from keras_ether.adapters.optimizer_state import LOAD
from keras_ether.adapters.optimizer_state import SAVE
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Model
from keras_ether.types import Optimizer


class WithAdapter:
    """Keeps a model's optimizers with an adapter in its files, as a change.

    Keras saves and loads a model before its layers and its optimizers. The
    model then passes itself to its first adapter. The adapter takes the
    optimizers, and each of them omits its own entry this time.

    Writing or reading a file may end anywhere. So what it leaves behind keeps
    nothing in memory, and the model's next file starts without it.

    Args:
        model: An adapted model, or a model in it.
    """

    def __init__(self, model: Model) -> None:
        self.model = weakref.ref(model)
        self.of_model = [
            changes.Method(model, name, functools.partial(self._pass, name))
            for name in (SAVE, LOAD)
        ]
        # An optimizer refers to its change as long as it is made.
        self.of_optimizers: weakref.WeakSet[changes.Change] = weakref.WeakSet()

    def do(self) -> None:
        for change in self.of_model:
            change.do()

    def undo(self) -> None:
        self._restore_optimizers()
        for change in reversed(self.of_model):
            change.undo()

    def take(self, name: str) -> dict[int, Optimizer]:
        """The built optimizers, by place, which omit their next entry."""
        taken = self._optimizers()
        for optimizer in taken.values():
            for part in [optimizer, *_wrapped(optimizer)]:
                self._leave_out(part, name)
        return taken

    def _pass(self, name: str, original: Callable, store: Any) -> None:
        """Passes the model to an adapter, before its own method."""
        self._restore_optimizers()
        adapted = LayerTree(self.model()).adapted
        if adapted and self._optimizers():
            path, layer = next(iter(adapted.items()))
            layer.ether.passed[path.count("/")] = self
        original(store)

    def _optimizers(self) -> dict[int, Optimizer]:
        """The optimizers that have slots, by place; that of `fit` is first."""
        model = self.model()
        found = optimizer_slots.optimizers_of([model])
        inner = {
            id(part) for optimizer in found for part in _wrapped(optimizer)
        }
        outer = [optimizer for optimizer in found if id(optimizer) not in inner]
        main = getattr(model, "optimizer", None)
        outer.sort(key=lambda optimizer: optimizer is not main)
        return {
            place: optimizer
            for place, optimizer in enumerate(outer)
            if any(
                part.built and optimizer_slots.slots_of(part)
                for part in [optimizer, *_wrapped(optimizer)]
            )
        }

    def _leave_out(self, optimizer: Optimizer, name: str) -> None:
        def once(original: Callable, store: Any) -> None:
            change.undo()
            # Older files, and files of a plain model, have an entry. After an
            # interrupted file the optimizer may have gone to another model.
            if (
                len(store.keys())
                if name == LOAD
                else optimizer
                not in optimizer_slots.optimizers_of([self.model()])
            ):
                original(store)

        if name not in vars(optimizer):
            change = changes.Method(optimizer, name, once)
            self.of_optimizers.add(change)
            change.do()

    def _restore_optimizers(self) -> None:
        for change in list(self.of_optimizers):
            change.undo()


def _wrapped(optimizer: Optimizer) -> list[Optimizer]:
    return optimizer_slots.optimizers_of([optimizer])
