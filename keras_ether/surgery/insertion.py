"""Inserting adapters into a model, and removing them."""

import functools
from collections.abc import Callable
from collections.abc import Iterator

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import changes
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters import reduction
from keras_ether.adapters import twin_class
from keras_ether.adapters.adapter import Adapter
from keras_ether.surgery import compiled_state
from keras_ether.surgery import low_rate
from keras_ether.surgery import optimizer_files
from keras_ether.surgery import refusals
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.planning import Plan
from keras_ether.surgery.planning import Target
from keras_ether.types import Layer

# The name of the methods that an adapted model refuses, or warns in.
GUARDED = "guarded"


def build_adapters(
    plan: Plan, make: Callable[[Target], Adapter]
) -> dict[str, Adapter]:
    """Builds the adapters that `make` makes, by path, not yet in the model."""
    with internals.strategy_scope(plan.tree.model):
        return {t.path: built(t, make(t)) for t in plan.targets}


def built(target: Target, adapter: Adapter) -> Adapter:
    """An adapter, built for a target."""
    # As if built by the layer itself, so that the rules of a layout map for the
    # layer find the vectors.
    parent, _, name = (target.layer.path or target.layer.name).rpartition("/")
    with keras.name_scope(name, override_parent=parent):
        adapter.build(target.view, target.kernel_shape)
    return adapter


def put_in(
    made: changes.Transaction, plan: Plan, adapters: dict[str, Adapter]
) -> None:
    """Inserts built adapters into a model, and freezes the other layers."""
    owner = changes.Owner()
    _freeze_all_but(made, plan, owner)
    for target in plan.targets:
        adapt(made, target.layer, adapters[target.path], owner)
    for layer in plan.tree.all_layers:
        guard(made, layer, plan.tree.model, owner)
        reduction.register_class(layer)
    for variable in plan.trained:
        made.make(changes.Flag(variable, True))
    compiled_state.reset(made, plan.tree)


def adapt(
    made: changes.Transaction,
    layer: Layer,
    adapter: Adapter,
    owner: changes.Owner,
) -> None:
    """Adapts a plain layer."""
    made.hold(
        layer,
        twin_class.ADAPTED,
        owner,
        functools.partial(_adapting, layer, adapter),
    )
    made.make(changes.Member(owner.adapted, layer))


def guard(
    made: changes.Transaction,
    layer: Layer,
    model: Layer,
    owner: changes.Owner,
) -> None:
    """Makes a layer of an adapted model refuse, or warn of, some calls."""
    made.hold(layer, GUARDED, owner, functools.partial(_guards, layer, model))


def take_out(made: changes.Transaction, tree: LayerTree) -> None:
    """Makes adapted layers plain again.

    The owner of the adapters releases all its layers, in this model and around
    it, as soon as it has no other adapters.
    """
    leaving: set[changes.Owner] = set()
    adapted = list(tree.adapted.values())
    for layer in adapted:
        # Code that was traced with the adapter then computes without it.
        made.assign(layer.ether.runtime_strength, 0.0)
        found = changes.held(layer, twin_class.ADAPTED)
        owners = set() if found is None else set(found.owners)
        made.release(layer, twin_class.ADAPTED)
        for owner in owners:
            made.make(changes.Inverse(changes.Member(owner.adapted, layer)))
        leaving |= owners
    done = {owner for owner in leaving if not owner.adapted}
    layers = list(tree.all_layers)
    for owner in done:
        layers += owner.layers
    for layer in layers:
        made.release(layer, GUARDED, done)
        freezing.release_all(made, layer, done)
    for model in compiled_state.reset(made, tree):
        # The model of a bank of these adapters has some.
        if hasattr(model, "values_without_adapters"):
            for variable, value in model.values_without_adapters(adapted):
                made.assign(variable, value)


def _adapting(layer: Layer, adapter: Adapter) -> Iterator[changes.Change]:
    yield from twin_class.adapting(layer, adapter)
    yield refusals.quantizing(layer)


def _guards(layer: Layer, model: Layer) -> Iterator[changes.Change]:
    yield from refusals.changes_for(layer, model)
    if isinstance(layer, keras.Model):
        yield low_rate.change_for(layer)
        yield optimizer_files.WithAdapter(layer)


def _freeze_all_but(
    made: changes.Transaction, plan: Plan, owner: changes.Owner
) -> None:
    """Freezes all layers but trainable layers and parents of such.

    A layer that another owner keeps trainable is frozen when that owner lets
    go.
    """
    targets = {id(target.layer) for target in plan.targets}
    inside: dict[int, bool] = {}

    def trains(layer: Layer) -> bool:
        return (
            id(layer) in plan.trainable
            or freezing.is_kept_trainable(layer)
            or holds(layer)
        )

    def holds(layer: Layer) -> bool:
        """Whether a layer has an adapter, or parts that train."""
        if id(layer) not in inside:
            parts = [trains(part) for part in plan.tree.parts(layer)]
            inside[id(layer)] = (
                any(parts) or id(layer) in targets or kinds.is_adapted(layer)
            )
        return inside[id(layer)]

    for layer in plan.tree.all_layers:
        if id(layer) in plan.trainable:
            freezing.keep_trainable(made, layer, owner)
        elif not kinds.is_adapter(layer):
            freezing.freeze(made, layer, owner, trainable=holds(layer))
