"""Inserting built adapters into a model, and removing them."""

import warnings
from collections.abc import Sequence

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import freezing
from keras_ether.adapters import head_start
from keras_ether.adapters import kinds
from keras_ether.adapters import twin_class
from keras_ether.adapters.adapter import Adapter
from keras_ether.surgery import compiled_state
from keras_ether.surgery import low_rate
from keras_ether.surgery import refusals
from keras_ether.surgery import torch_parameters
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.planning import Plan
from keras_ether.surgery.planning import Target
from keras_ether.types import Layer


def build_adapters(
    plan: Plan, seeds: Sequence[int | None] | None = None
) -> list[Adapter]:
    """Adapters for a plan's targets, not yet in the model."""
    seeds = seeds or [None] * len(plan.targets)
    with internals.strategy_scope(plan.tree.model):
        return [
            build_adapter(target, seed)
            for target, seed in zip(plan.targets, seeds, strict=True)
        ]


def build_adapter(target: Target, seed: int | None) -> Adapter:
    """One adapter, built for a target."""
    adapter = Adapter(target.config, seed=seed)
    # As if built by the layer itself, so that the rules of a layout map for the
    # layer find the vectors.
    parent, _, name = (target.layer.path or target.layer.name).rpartition("/")
    with keras.name_scope(name, override_parent=parent):
        adapter.build(target.view, target.kernel_shape)
    return adapter


def put_in(plan: Plan, adapters: Sequence[Adapter]) -> None:
    """Inserts built adapters into a model, and freezes the other layers."""
    _freeze_all_but(plan)
    for target, adapter in zip(plan.targets, adapters, strict=True):
        place(target.layer, adapter)
    put_up_guards(plan.tree)
    compiled_state.reset(plan.tree)


def place(layer: Layer, adapter: Adapter) -> None:
    """Makes a plain layer an adapted one."""
    layer.__class__ = twin_class.adapted_class(layer)
    internals.add_sublayer(layer, kinds.ADAPTER, adapter)
    torch_parameters.renew()


def put_up_guards(tree: LayerTree) -> None:
    """Makes an adapted model refuse, or warn of, unsupported calls."""
    refusals.forbid(tree)
    low_rate.watch(tree)


def take_out(tree: LayerTree) -> None:
    """Makes adapted layers plain again."""
    for layer in tree.adapted.values():
        plain_class = twin_class.plain_class(layer)
        internals.remove_sublayer(layer, kinds.ADAPTER)
        layer.__class__ = plain_class
    torch_parameters.renew()
    refusals.allow(tree)
    low_rate.unwatch(tree)
    for layer in tree.everything:
        freezing.thaw(layer)
        head_start.forget(layer)
    compiled_state.reset(tree)


def _freeze_all_but(plan: Plan) -> None:
    """Freezes all but the kept layers and the parents of trained ones."""
    targets = {id(target.layer) for target in plan.targets}
    holds: dict[int, bool] = {}

    def trains(layer: Layer) -> bool:
        if id(layer) not in holds:
            parts = [trains(part) for part in plan.tree.parts(layer)]
            holds[id(layer)] = (
                any(parts)
                or id(layer) in targets | plan.kept
                or kinds.is_adapted(layer)
                or freezing.is_kept(layer)
            )
        return holds[id(layer)]

    for layer in plan.tree.everything:
        if id(layer) in plan.kept:
            # An earlier `apply` may have frozen it.
            freezing.thaw(layer)
            freezing.keep(layer)
            head_start.remember(layer)
        elif not freezing.is_kept(layer) and not kinds.is_adapter(layer):
            freezing.freeze(layer, trainable=trains(layer))


def warn_of_outer_model(model: Layer) -> None:
    """Warns of a compiled outer model, which can't be found from here.

    Call it before any change, since a warning may be made an error.
    """
    if isinstance(model, keras.Model) and internals.is_called_in_another_model(
        model
    ):
        warnings.warn(
            f"Model '{model.name}' is part of another model. If that one is "
            "compiled, call `compile(...)` on it again before it is used: its "
            "compiled functions and its optimizer know nothing of the change. "
            "Or pass it, the outermost model, instead.",
            # The line that calls the verb.
            stacklevel=3,
        )
