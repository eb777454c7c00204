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

# An argument that `checked` has accepted.
Targets = str | list[str] | Callable[[str, Layer], bool] | None


def checked(value: Any, argument: str) -> Targets:
    """An argument of `apply` that selects layers, if its form is accepted.

    Args:
        value: The value passed.
        argument: `"targets"`, `"exclude"` or `"trainable"`.

    Returns:
        A string, a list of strings, a predicate or `None`.

    Raises:
        ValueError: if it has another form.
    """
    if value is None or isinstance(value, str):
        return value
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
    if argument == "trainable":
        accepted = (
            "a layer's name or path, a regular expression for whole paths, a "
            "list of these"
        )
    else:
        accepted = (
            "'all-linear', 'all', a regular expression for whole paths, a list "
            "of layer names or paths, a callable `(layer_path, layer) -> bool`"
        )
    raise ValueError(
        f"`{argument}` must be {accepted}, or None. Received: "
        f"{argument}={value!r}"
    )


def named(layers: dict, entry: str) -> set[str]:
    """The paths of the layers that an entry of a list selects.

    The layers of that name, or if there are none, the layer of that path: an
    automatic name can be the path of another layer.

    Args:
        layers: Dictionary from path to layer, all those of a model.
        entry: Name or path.
    """
    paths = {path for path, layer in layers.items() if layer.name == entry}
    return paths or layers.keys() & {entry}


def match(
    tree: LayerTree, candidates: dict[str, Layer], targets: Targets
) -> set[str]:
    """The paths among `candidates` that `targets` selects.

    Args:
        tree: All layers of the model.
        candidates: Those of them that may be selected.
        targets: `None` for the default, `"all-linear"`, `"all"`, a regular
            expression for whole paths, a list of layer names or paths, or a
            predicate `(path, layer)`.

    Raises:
        ValueError: if an entry of a list names no layer of the model.
    """
    if targets is None:
        return default_match(tree, candidates)
    if isinstance(targets, list):
        layers = tree.without_adapters
        paths = {entry: named(layers, entry) for entry in targets}
        # A message with the possible targets helps more than one with all
        # layers.
        _check_found(paths, candidates, "targets")
        return set().union(*paths.values()) & candidates.keys()
    return _match_form(candidates, targets, "targets")


def match_excluded(
    tree: LayerTree, candidates: dict[str, Layer], exclude: Targets
) -> set[str]:
    """The paths that `exclude` selects, with all layers inside them.

    Args:
        tree: All layers of the model.
        candidates: Those of them that a predicate is called with.
        exclude: As `targets` of `match`.

    Raises:
        ValueError: if an entry or a regular expression matches no layer.
    """
    if exclude is None:
        return set()
    layers = tree.without_adapters
    if isinstance(exclude, list):
        paths = {entry: named(layers, entry) for entry in exclude}
    elif callable(exclude) or exclude in ("all", "all-linear"):
        return _match_form(candidates, exclude, "exclude")
    else:
        paths = {exclude: _fullmatch(layers, exclude, "exclude")}
    hint = "" if isinstance(exclude, list) else pattern_hint("exclude", exclude)
    _check_found(paths, layers, "exclude", hint)
    return tree.with_inner(set().union(*paths.values()))


def match_kept(tree: LayerTree, trainable: Targets) -> set[str]:
    """The paths that `trainable` selects, with all layers inside them.

    Args:
        tree: All layers of the model.
        trainable: List of layer names, paths or regular expressions for whole
            paths, or one of them.

    Raises:
        ValueError: if an entry matches nothing.
    """
    if trainable is None or callable(trainable):
        # `checked` lets no callable pass.
        return set()
    layers = tree.without_adapters
    entries = [trainable] if isinstance(trainable, str) else trainable
    paths = {
        entry: named(layers, entry) or _fullmatch(layers, entry, "trainable")
        for entry in entries
    }
    _check_found(paths, layers, "trainable")
    return tree.with_inner(set().union(*paths.values()))


def _match_form(
    layers: dict[str, Layer],
    targets: str | Callable[[str, Layer], bool],
    argument: str,
) -> set[str]:
    """The paths that a string or a predicate selects."""
    if callable(targets):
        return {path for path, layer in layers.items() if targets(path, layer)}
    if targets == "all":
        return set(layers)
    if targets == "all-linear":
        return {path for path, y in layers.items() if kinds.is_linear(y)}
    return _fullmatch(layers, targets, argument)


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


def _check_found(
    found: dict[str, set[str]],
    layers: dict[str, Layer],
    argument: str,
    hint: str = "",
) -> None:
    """Raises a `ValueError` for an entry without paths, with similar names.

    Args:
        found: Dictionary from entry to paths.
        layers: Dictionary from path to layer, those that the message may name.
        argument: Name of the argument.
        hint: A further sentence, ending in a space.
    """
    for entry in (entry for entry, paths in found.items() if not paths):
        names = [layer.name for layer in layers.values()]
        near = difflib.get_close_matches(entry, {*names, *layers}, n=4)
        shown = f"Near it: {shorten(near)}"
        if not near:
            owners = [p for p, layer in layers.items() if layer.weights]
            shown = f"Layers: {shorten(owners) or 'none'}"
        raise ValueError(
            f"`{argument}` names no layer of the model: {entry!r}. {hint}"
            f"{shown}."
        )


def pattern_hint(argument: str, pattern: str) -> str:
    """A hint for the message of a string that matches nothing."""
    return (
        "A string is a regular expression for whole paths; for a name pass a "
        f"list, {argument}=[{pattern!r}]. "
    )


def shorten(paths: Iterable[str], most: int = 12) -> str:
    """A list of paths for a message."""
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
    return _match_form(candidates, "all-linear", "targets") or set(candidates)
