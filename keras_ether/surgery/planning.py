"""What `apply` would do: every check, before anything is touched."""

from dataclasses import dataclass

import keras
import numpy as np

from keras_ether import _keras_internals as internals
from keras_ether import methods
from keras_ether.adapters import eligibility
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters.arguments import check_arguments
from keras_ether.adapters.arguments import check_blocks
from keras_ether.ops.conv_view import ConvView
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.surgery import targets as targets_lib


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter."""

    path: str
    layer: keras.layers.Layer
    view: MatrixView | ConvView
    kernel_shape: tuple[int, ...]
    method: str
    rank_blocks: int
    side: str
    dropout: float

    @property
    def numbers(self):
        """Count of the numbers that its adapter would train."""
        experts, inputs, outputs = self.view.sizes(self.kernel_shape)
        start = methods.get(self.method).start
        rng = np.random.default_rng(0)
        return sum(
            experts * self.rank_blocks * weight.size
            for name, size in (("input", inputs), ("output", outputs))
            if self.side in (name, "both")
            for weight in start(1, size // self.rank_blocks, rng)
        )


@dataclass(frozen=True)
class Plan:
    """The arguments of `apply`, checked and resolved on one model."""

    targets: tuple[Target, ...]
    # Ids of the layers that stay trainable: the head, and what the user kept.
    kept: frozenset[int]
    # Why layers that could have matched did not, by path.
    reasons: dict[str, str]


def make_plan(
    model,
    rank_blocks=4,
    method="ether",
    targets=None,
    exclude=None,
    side=None,
    trainable=None,
    dropout=0.0,
    seed=None,
) -> Plan:
    """Resolves and checks the arguments of `keras_ether.apply`.

    Raises:
        ValueError: if the model or an argument is not as it must be.
    """
    rank_blocks, dropout, seed = check_arguments(
        method, rank_blocks, side, dropout, seed
    )
    targets = targets_lib.checked(targets, "targets")
    exclude = targets_lib.checked(exclude, "exclude")
    trainable = targets_lib.checked(trainable, "trainable")
    check_built(model)
    # Adapters from before are no layers that a user knows of.
    layers = {
        path: layer
        for path, layer in targets_lib.walk(model).items()
        if not kinds.is_adapter(layer)
    }
    head = targets_lib.head_of(model)
    named = targets_lib.match_kept(layers, trainable)
    for path in sorted(named):
        if kinds.is_adapted(layers[path]):
            raise ValueError(
                f"Layer '{path}' can't be kept trainable: it has an ETHER "
                "adapter already. Call `keras_ether.merge` or "
                f"`keras_ether.remove` first. Received: trainable={trainable!r}"
            )
    reasons = {
        path: "kept trainable"
        for path, layer in layers.items()
        if path in named or freezing.is_kept(layer)
    }
    reasons |= {
        p: "in the head" for p, layer in layers.items() if id(layer) in head
    }
    candidates = {
        path: layer
        for path, layer in layers.items()
        if kinds.kind_of(layer) and path not in reasons
    }
    if targets is None:
        matched = targets_lib.default_match(model, layers, candidates)
    else:
        matched = targets_lib.match(layers, candidates, targets)
    excluded = targets_lib.match_excluded(layers, candidates, exclude)
    if isinstance(targets, list):
        _check_named(layers, candidates, reasons, targets, excluded)
    reasons |= dict.fromkeys(matched & excluded, "excluded")
    matched -= excluded
    chosen = {p: layer for p, layer in candidates.items() if p in matched}
    by_name = targets not in (None, "all-linear", "all")
    refused = _refused(chosen, method, dropout, side, by_name)
    reasons |= refused
    chosen = {p: layer for p, layer in chosen.items() if p not in refused}
    if not chosen:
        hint = ""
        if by_name and isinstance(targets, str) and not matched | excluded:
            hint = targets_lib.pattern_hint("targets", targets)
        raise ValueError(
            f"No layer of model '{model.name}' matches targets={targets!r}, "
            f"exclude={exclude!r}. {hint}Layers that could have matched: "
            f"{targets_lib.shorten(candidates) or 'none'}."
        )
    _check_unshared(model, layers, chosen)
    resolved = []
    for path, layer in chosen.items():
        target = Target(
            path=path,
            layer=layer,
            view=kinds.kind_of(layer).view(layer),
            kernel_shape=kinds.kernel_shape(layer),
            method=method,
            rank_blocks=rank_blocks,
            side=kinds.side_of(layer, method, side),
            dropout=dropout,
        )
        sizes = target.view.sizes(target.kernel_shape)
        check_blocks(path, sizes, method, rank_blocks, target.side)
        resolved.append(target)
    kept = head | {id(layers[path]) for path in named}
    return Plan(tuple(resolved), frozenset(kept), reasons)


def check_built(model):
    """Raises a `ValueError` unless `model` is a built Keras model or layer."""
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`model` must be a Keras model or layer. Received: "
            f"model={model!r} of type {type(model).__name__}"
        )
    if not model.built or not model.weights:
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no kernels yet. "
            "Call it on data, or `model.build(input_shape)`, first."
        )


def _check_named(layers, candidates, reasons, targets, excluded):
    """Raises a `ValueError` if a list names what can't be a target.

    Where several layers have the name, one target among them is enough, unless
    another one has kernels that are then left out unnoticed.
    """
    for entry in targets:
        paths = targets_lib.named(layers, entry) - excluded
        meant = paths & candidates.keys()
        for path in (p for p in layers if p in paths - meant):
            below = targets_lib.with_below(layers, {path}) & candidates.keys()
            inside = [p for p in layers if p in below - excluded]
            unknown = path not in reasons and eligibility.why_unknown(
                layers[path]
            )
            if meant and not unknown and (not inside or below & meant):
                continue
            reason = unknown or "it has no kernel of its own"
            if path in reasons:
                reason = f"it is {reasons[path]}, so it trains as it is"
            elif inside:
                shown = targets_lib.shorten(inside, most=4)
                reason += f". Name the layers inside it: {shown}"
            raise ValueError(
                f"Layer '{path}' of class {layers[path].__class__.__name__}, "
                f"which `targets` names, can't be adapted: {reason}. Received: "
                f"targets={targets!r}"
            )


def _refused(chosen, method, dropout, side, by_name):
    """Reasons by path, for layers that can't have an adapter.

    A layer that the user named is an error, and so is one that has an adapter
    of any sort already; others are left out.
    """
    adapted = [p for p, layer in chosen.items() if kinds.is_adapted(layer)]
    if adapted:
        raise ValueError(
            "These layers have an ETHER adapter already: "
            f"{targets_lib.shorten(adapted)}. Leave them out with `exclude`, "
            "or call `keras_ether.merge` or `keras_ether.remove` first."
        )
    refused = {}
    for path, layer in chosen.items():
        reason = eligibility.refusal_reason(layer, dropout, side)
        reason = reason or eligibility.why_constant(layer, method, side)
        if reason is None:
            continue
        if by_name or getattr(layer, "lora_enabled", False):
            raise ValueError(f"Layer '{path}' can't be adapted: {reason}.")
        refused[path] = reason
    return refused


def _check_unshared(model, layers, chosen):
    """Raises a `ValueError` if another layer holds a target's kernel too."""
    owners = {}
    holders = list(layers.items())
    if all(layer is not model for layer in layers.values()):
        holders.insert(0, (model.name, model))
    for path, layer in holders:
        for variable in internals.held_variables(layer):
            if len(variable.shape) > 1:
                owners.setdefault(id(variable), []).append(path)
    for paths in owners.values():
        if len(paths) > 1 and not chosen.keys().isdisjoint(paths):
            raise ValueError(
                f"These layers share one kernel: {targets_lib.shorten(paths)}. "
                "An adapter of one would change the other when it is merged: "
                "leave them out with `exclude`."
            )
