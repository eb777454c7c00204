"""Models whose files hold the optimizer's variables with an adapter.

See `keras_ether.adapters.optimizer_state`.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras

from keras_ether.adapters import changes
from keras_ether.surgery import optimizer_slots
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Model
from keras_ether.types import Optimizer

SAVE, LOAD = "save_own_variables", "load_own_variables"


class WithAdapter:
    """Keeps a model's optimizer with an adapter in its files, as a change.

    Keras saves and loads a model before its layers and its optimizer. The model
    then passes the optimizer to its first adapter, and the optimizer omits its
    own entry this time.

    Args:
        model: An adapted model, or a model in it.
    """

    def __init__(self, model: Model) -> None:
        self.model = weakref.ref(model)
        self.of_model = [
            changes.Method(model, name, functools.partial(self._pass, name))
            for name in (SAVE, LOAD)
        ]
        self.of_optimizers: list[changes.Change] = []
        self.pending: set[int] = set()

    def do(self) -> None:
        for change in self.of_model:
            change.do()

    def undo(self) -> None:
        for change in reversed([*self.of_model, *self.of_optimizers]):
            change.undo()
        self.of_optimizers = []

    def _pass(self, name: str, original: Callable, store: Any) -> None:
        """Passes the optimizer to an adapter, before the model's own method."""
        model = self.model()
        adapted = LayerTree(model).adapted.values()
        optimizer = getattr(model, "optimizer", None)
        if adapted and isinstance(optimizer, keras.optimizers.Optimizer):
            parts = optimizer_slots.optimizers_of([model])
            if any(o.built and optimizer_slots.slots_of(o) for o in parts):
                next(iter(adapted)).ether.optimizers.append(optimizer)
                for part in parts:
                    self._leave_out(part, name)
        original(store)

    def _leave_out(self, optimizer: Optimizer, name: str) -> None:
        self.pending.add(id(optimizer))

        def once(original: Callable, store: Any) -> None:
            if id(optimizer) not in self.pending:
                original(store)
                return
            self.pending.discard(id(optimizer))
            # Older files, and files of a plain model, have it there.
            if name == LOAD and len(store.keys()):
                original(store)

        if name not in vars(optimizer):
            change = changes.Method(optimizer, name, once)
            self.of_optimizers.append(change)
            change.do()
