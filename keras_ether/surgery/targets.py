"""Which layers: structural paths, names, patterns, predicates, the head."""

import difflib
import re
from collections.abc import Callable
from collections.abc import Mapping

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import kinds

# An argument that `checked` has seen.
Targets = str | list[str] | Callable | None


def walk(model):
    """Every layer below `model` once, parents first, with structural paths.

    A path joins layer names by `/`. Names that Keras made up, which count up
    within a process (`dense_7`), are replaced by the class's name and a count
    among siblings (`dense`, `dense_1`), so that a path is the same in every
    process that builds the same model.

    Args:
        model: A Keras model or layer.

    Returns:
        Dictionary from path to layer. `model` itself is in it only if it is a
        layer that can be adapted.
    """
    found, seen = {}, {id(model)}
    if kinds.kind_of(model):
        found[_stable_name(model)] = model

    def visit(parent, prefix):
        taken = set()
        for layer in internals.children(parent):
            name = segment = _stable_name(layer)
            count = 0
            while segment in taken:
                count += 1
                segment = f"{name}_{count}"
            taken.add(segment)
            if id(layer) not in seen:
                seen.add(id(layer))
                found[prefix + segment] = layer
                visit(layer, f"{prefix}{segment}/")

    visit(model, "")
    return found


def _stable_name(layer):
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", layer.__class__.__name__)
    automatic = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    made_up = re.fullmatch(rf"{re.escape(automatic)}(_\d+)?", layer.name)
    return automatic if made_up else layer.name


def head_of(model) -> set[int]:
    """Ids of the layers that a task has outside its `backbone`."""
    backbone = getattr(model, "backbone", None)
    if not hasattr(backbone, "weights") or _is_backbone(model):
        return set()
    inside = {id(backbone)} | {id(layer) for layer in walk(backbone).values()}
    return {
        id(layer)
        for layer in walk(model).values()
        if layer.variables
        and id(layer) not in inside
        # A container around the backbone is not part of the head.
        and not any(id(part) in inside for part in walk(layer).values())
    }


def _is_backbone(model):
    """Whether it is a KerasHub backbone, which may hold another one."""
    return any(base.__name__ == "Backbone" for base in type(model).__mro__)


def checked(value, argument: str) -> Targets:
    """An argument of `apply` that says which layers, if its form is accepted.

    Args:
        value: What was passed.
        argument: `"targets"`, `"exclude"` or `"trainable"`.

    Returns:
        A string, a list of strings, a predicate or `None`.

    Raises:
        ValueError: if it is of no such form.
    """
    if value is None or isinstance(value, str):
        return value
    # Layers and classes can be called too, but answer no question.
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
    """The paths of the layers that an entry of a list means.

    The layers of that name, or where there is none, the layer of that path: a
    name that Keras made up can be the path of another layer.

    Args:
        layers: Dictionary from path to layer, all those of a model.
        entry: Name or path.
    """
    paths = {path for path, layer in layers.items() if layer.name == entry}
    return paths or layers.keys() & {entry}


def match(layers: dict, candidates: dict, targets: Targets) -> set[str]:
    """The paths among `candidates` that `targets` means.

    Args:
        layers: Dictionary from path to layer, all those of a model.
        candidates: Those of them that may be meant.
        targets: `"all-linear"`, `"all"`, a regular expression for whole paths,
            a list of layer names or paths, or a predicate `(path, layer)`.

    Raises:
        ValueError: if an entry of a list names no layer of the model.
    """
    if isinstance(targets, list):
        paths = {entry: named(layers, entry) for entry in targets}
        # What can be a target is of more help than all that there is.
        _check_found(paths, candidates, "targets")
        return set().union(*paths.values()) & candidates.keys()
    return _match_form(candidates, targets, "targets")


def match_excluded(layers: dict, candidates: dict, exclude: Targets):
    """The paths that `exclude` means, with all layers below them.

    Args:
        layers: Dictionary from path to layer, all those of a model.
        candidates: Those of them that a predicate is asked about.
        exclude: As `targets` of `match`.

    Raises:
        ValueError: if an entry or a regular expression matches no layer.
    """
    if exclude is None:
        return set()
    if isinstance(exclude, list):
        paths = {entry: named(layers, entry) for entry in exclude}
    elif callable(exclude) or exclude in ("all", "all-linear"):
        return _match_form(candidates, exclude, "exclude")
    else:
        paths = {exclude: _fullmatch(layers, exclude, "exclude")}
    hint = "" if isinstance(exclude, list) else pattern_hint("exclude", exclude)
    _check_found(paths, layers, "exclude", hint)
    return with_below(layers, set().union(*paths.values()))


def match_kept(layers: dict, trainable: Targets) -> set[str]:
    """The paths that `trainable` means, with all layers below them.

    Args:
        layers: Dictionary from path to layer, all those of a model.
        trainable: List of layer names, paths or regular expressions for whole
            paths, or one of them.

    Raises:
        ValueError: if an entry matches nothing.
    """
    if trainable is None:
        return set()
    entries = [trainable] if isinstance(trainable, str) else trainable
    paths = {
        entry: named(layers, entry) or _fullmatch(layers, entry, "trainable")
        for entry in entries
    }
    _check_found(paths, layers, "trainable")
    return with_below(layers, set().union(*paths.values()))


def with_below(layers: dict, paths: set[str]) -> set[str]:
    """Some paths of layers, and those of all layers inside them.

    A layer that stands in two places has the path of the first.
    """
    inside = set()
    for path in paths:
        if id(layers[path]) not in inside:
            parts = walk(layers[path]).values()
            inside |= {id(layers[path]), *(id(part) for part in parts)}
    return {path for path, layer in layers.items() if id(layer) in inside}


def _match_form(layers, targets, argument):
    """The paths that anything but a list means."""
    if callable(targets):
        return {path for path, layer in layers.items() if targets(path, layer)}
    if targets == "all":
        return set(layers)
    if targets == "all-linear":
        return {p for p, layer in layers.items() if kinds.kind_of(layer).linear}
    return _fullmatch(layers, targets, argument)


def _fullmatch(layers, pattern, argument):
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{argument}` is not a valid regular expression ({error}). "
            f"Received: {argument}={pattern!r}"
        ) from error
    return {path for path in layers if compiled.fullmatch(path)}


def _check_found(found, layers, argument, hint=""):
    """Raises a `ValueError` for an entry without paths, with what is near it.

    Args:
        found: Dictionary from entry to paths.
        layers: Dictionary from path to layer, those worth naming.
        argument: Name of the argument.
        hint: What else to say, ending in a blank.
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
    """What to say of a string that matches nothing."""
    return (
        "A string is a regular expression for whole paths; for a name pass a "
        f"list, {argument}=[{pattern!r}]. "
    )


def shorten(paths, most=12) -> str:
    """A list of paths for a message."""
    paths = list(paths)
    more = f", and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(repr(path) for path in paths[:most]) + more


def default_match(model, layers: dict, candidates: dict) -> set[str]:
    """The layers that KerasHub would give LoRA, or else all linear ones."""
    for owner in (model, getattr(model, "backbone", None)):
        names = getattr(owner, "default_lora_layer_names", None)
        if names is not None:
            # A model may have none of some name.
            paths = set().union(*(named(layers, name) for name in names()))
            if paths & candidates.keys():
                return paths & candidates.keys()
    return _match_form(candidates, "all-linear", "targets") or set(candidates)
