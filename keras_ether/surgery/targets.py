"""Selecting layers: names, structural paths, patterns, predicates."""

import difflib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import keras

from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Layer

# What a user may pass to select layers.
Targets = str | Iterable[str] | Callable[[str, Layer], bool] | None
# The same as `checked` returns it.
Selection = list[str] | Callable[[str, Layer], bool] | None
# Entries that select candidates by their kind.
ALL, ALL_LINEAR = "all", "all-linear"


def checked(value: Any, argument: str) -> Selection:
    """`targets`, `exclude` or `trainable` as a `Selection`.

    Raises:
        ValueError: if it has another form.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    # Layers and classes are callable too, but are not predicates.
    is_keras = isinstance(value, (type, keras.layers.Layer))
    if callable(value) and not is_keras and argument != "trainable":
        return value
    try:
        entries = list(value)
    except TypeError:
        entries = [None]
    if not isinstance(value, (Mapping, bytes)) and all(
        isinstance(entry, str) for entry in entries
    ):
        return entries
    accepted = (
        "a layer's name or path, a regular expression for whole paths, a list "
        "of these"
    )
    if argument != "trainable":
        accepted = (
            f"'{ALL_LINEAR}', '{ALL}', {accepted}, a callable "
            "`(layer_path, layer) -> bool`"
        )
    raise ValueError(
        f"`{argument}` must be {accepted}, or None. Received: "
        f"{argument}={value!r}"
    )


def named(layers: dict, entry: str) -> set[str]:
    """The paths of the layers that an entry names.

    It selects the layers of that name, or if there are none, the layer of that
    path: an automatic name can be the path of another layer.
    """
    paths = {path for path, layer in layers.items() if layer.name == entry}
    return paths or layers.keys() & {entry}


def match(
    tree: LayerTree, candidates: dict[str, Layer], targets: Selection
) -> tuple[set[str], set[str]]:
    """The paths among `candidates` that `targets` selects.

    Args:
        tree: All layers of the model.
        candidates: Those of them that may be selected.
        targets: `None` for the default, or as `checked` returns it.

    Returns:
        All selected paths, and the paths among them that are named
        individually, not by their kind.

    Raises:
        ValueError: if an entry selects no layer of the model.
    """
    if targets is None:
        return default_match(tree, candidates), set()
    if callable(targets):
        paths = {p for p, layer in candidates.items() if targets(p, layer)}
        return paths, paths
    # The message lists the possible targets instead of all layers.
    found = _found(tree, targets, candidates, candidates, "targets")
    by_name = [p for e, p in found.items() if e not in (ALL, ALL_LINEAR)]
    return (
        set().union(*found.values()) & candidates.keys(),
        set().union(*by_name) & candidates.keys(),
    )


def match_with_inner(
    tree: LayerTree,
    candidates: dict[str, Layer],
    selection: Selection,
    argument: str,
) -> set[str]:
    """The paths that `exclude` or `trainable` selects, and those inside them.

    Args:
        tree: All layers of the model.
        candidates: Those of them that a predicate is called with, and that
            `"all"` and `"all-linear"` select.
        selection: As `targets` of `match`; `None` selects nothing.
        argument: `"exclude"` or `"trainable"`.

    Raises:
        ValueError: if an entry selects no layer.
    """
    if selection is None:
        return set()
    if callable(selection):
        return {p for p, layer in candidates.items() if selection(p, layer)}
    layers = tree.without_adapters
    found = _found(tree, selection, candidates, layers, argument)
    return tree.with_inner(set().union(*found.values()))


def _found(
    tree: LayerTree,
    entries: list[str],
    candidates: dict[str, Layer],
    matched: dict[str, Layer],
    argument: str,
) -> dict[str, set[str]]:
    """The paths that each entry selects: by kind, by name or as a pattern.

    Args:
        tree: All layers of the model.
        entries: What the user passed.
        candidates: The layers that `"all"` and `"all-linear"` select.
        matched: The layers that a pattern matches, and a message names.
        argument: Name of the argument.

    Raises:
        ValueError: if an entry selects no layer.
    """
    found = {
        entry: _of_kind(candidates, entry)
        or named(tree.without_adapters, entry)
        or _fullmatch(matched, entry, argument)
        for entry in entries
    }
    for entry in (entry for entry, paths in found.items() if not paths):
        names = [layer.name for layer in matched.values()]
        near = difflib.get_close_matches(entry, {*names, *matched}, n=4)
        shown = f"Near it: {shorten(near)}"
        if not near:
            owners = [p for p, layer in matched.items() if layer.weights]
            shown = f"Layers: {shorten(owners) or 'none'}"
        raise ValueError(
            f"`{argument}` names no layer of the model: {entry!r}. {shown}."
        )
    return found


def _of_kind(candidates: dict[str, Layer], entry: str) -> set[str]:
    """The candidates that `"all"` and `"all-linear"` select."""
    if entry == ALL:
        return set(candidates)
    if entry == ALL_LINEAR:
        return {p for p, layer in candidates.items() if kinds.is_linear(layer)}
    return set()


def _fullmatch(
    layers: dict[str, Layer], pattern: str, argument: str
) -> set[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{argument}` is not a valid regular expression ({error}). "
            f"Received: {argument}={pattern!r}"
        ) from error
    return {path for path in layers if compiled.fullmatch(path)}


def shorten(paths: Iterable[str], most: int = 12) -> str:
    """A list of paths for a message, shortened."""
    paths = list(paths)
    more = f", and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(repr(path) for path in paths[:most]) + more


def default_match(tree: LayerTree, candidates: dict[str, Layer]) -> set[str]:
    """The layers to which KerasHub would add LoRA, or else all linear ones."""
    model, layers = tree.model, tree.without_adapters
    for owner in (model, getattr(model, "backbone", None)):
        names = getattr(owner, "default_lora_layer_names", None)
        if names is not None:
            # A model may lack layers of some names.
            paths = set().union(*(named(layers, name) for name in names()))
            if paths & candidates.keys():
                return paths & candidates.keys()
    return _of_kind(candidates, ALL_LINEAR) or set(candidates)
