"""Which layers: structural paths, names, patterns, predicates, the head."""

import re
from collections.abc import Callable
from collections.abc import Iterable

from keras_ether import _keras_internals as internals
from keras_ether.layers import kinds

Targets = str | Iterable[str] | Callable | None


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


def match(layers: dict, targets: Targets, argument: str) -> set[str]:
    """The paths among `layers` that an argument of `apply` means.

    Args:
        layers: Dictionary from path to layer, those that may be meant.
        targets: `"all-linear"`, `"all"`, a regular expression for whole paths,
            a list of layer names or paths, or a predicate `(path, layer)`.
        argument: Name of the argument, for messages.

    Raises:
        ValueError: if `targets` is of no such form.
    """
    if targets == "all":
        return set(layers)
    if targets == "all-linear":
        return {p for p, layer in layers.items() if kinds.kind_of(layer).linear}
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ValueError(
                f"`{argument}` is not a valid regular expression ({error}). "
                f"Received: {argument}={targets!r}"
            ) from error
        return {path for path in layers if pattern.fullmatch(path)}
    if callable(targets):
        return {path for path, layer in layers.items() if targets(path, layer)}
    if isinstance(targets, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) for name in targets
    ):
        return {
            path
            for path, layer in layers.items()
            if layer.name in targets or path in targets
        }
    raise ValueError(
        f"`{argument}` must be 'all-linear', 'all', a regular expression, a "
        "list of layer names, a callable `(layer_path, layer) -> bool` or "
        f"None. Received: {argument}={targets!r}"
    )


def match_kept(layers: dict, trainable) -> set[str]:
    """The paths of the layers that `trainable` names, with all below them.

    Args:
        layers: Dictionary from path to layer, as `walk` gives it.
        trainable: List of layer names, paths or regular expressions for whole
            paths, or one of them.

    Raises:
        ValueError: if an entry is no string or matches nothing.
    """
    entries = [trainable] if isinstance(trainable, str) else list(trainable)
    kept = set()
    for entry in entries:
        named = match(layers, [entry], "trainable")
        matched = named or match(layers, entry, "trainable")
        if not matched:
            raise ValueError(
                f"`trainable` names no layer of the model: {entry!r}. Layers: "
                f"{shorten(layers)}."
            )
        kept |= matched
    roots = tuple(f"{path}/" for path in kept)
    return kept | {path for path in layers if path.startswith(roots)}


def shorten(paths, most=12) -> str:
    """A list of paths for a message."""
    paths = list(paths)
    more = f", and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(repr(path) for path in paths[:most]) + more


def default_match(model, layers: dict) -> set[str]:
    """The layers that KerasHub would give LoRA, or else all linear ones."""
    for owner in (model, getattr(model, "backbone", None)):
        names = getattr(owner, "default_lora_layer_names", None)
        if names is not None:
            matched = match(layers, names(), "targets")
            if matched:
                return matched
    return match(layers, "all-linear", "targets") or set(layers)
