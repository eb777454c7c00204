"""The layers of a model, found by one walk."""

import functools
import re
from collections.abc import Iterable

import keras

from keras_ether import _keras_internals as internals
from keras_ether.adapters import kinds
from keras_ether.types import Layer


class LayerTree:
    """The layers of a model by structural path.

    A path joins layer names by `/`. Automatic names count up within a process
    (`dense_7`). They are replaced by the class's name and a count among
    siblings (`dense`, `dense_1`). So a path is the same in every process that
    builds the same model. A layer that occurs twice has its first path.

    Args:
        model: A Keras model or layer.

    Attributes:
        model: The same.
        layers: Dictionary from path to layer, each layer below the model once,
            parents first. The model itself is in it only if it is a layer that
            can be adapted.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    >>> list(LayerTree(model).layers)
    ['input_layer', 'dense']
    """

    def __init__(self, model: Layer) -> None:
        self.model = model
        self.layers: dict[str, Layer] = {}
        self._parts: dict[int, list[Layer]] = {}
        if kinds.kind_of(model):
            self.layers[_stable_name(model)] = model
        self._visit(model, "")

    def _visit(self, parent: Layer, prefix: str) -> None:
        parts = self._parts[id(parent)] = list(internals.children(parent))
        taken: set[str] = set()
        for layer in parts:
            name = segment = _stable_name(layer)
            count = 0
            while segment in taken:
                count += 1
                segment = f"{name}_{count}"
            taken.add(segment)
            if id(layer) not in self._parts:
                self.layers[prefix + segment] = layer
                self._visit(layer, f"{prefix}{segment}/")

    @property
    def all_layers(self) -> list[Layer]:
        """The model and every layer in it, each once."""
        return list(self.by_path.values())

    @property
    def by_path(self) -> dict[str, Layer]:
        """All layers by path; a model that has none has the path `""`."""
        if any(layer is self.model for layer in self.layers.values()):
            return self.layers
        return {"": self.model, **self.layers}

    @property
    def models(self) -> list[keras.Model]:
        """The models among the layers."""
        return [y for y in self.all_layers if isinstance(y, keras.Model)]

    @property
    def adapted(self) -> dict[str, Layer]:
        """The layers that have an adapter, by path."""
        return {p: y for p, y in self.layers.items() if kinds.is_adapted(y)}

    @property
    def without_adapters(self) -> dict[str, Layer]:
        """The layers that users know: adapters are left out."""
        return {p: y for p, y in self.layers.items() if not kinds.is_adapter(y)}

    def parts(self, layer: Layer) -> list[Layer]:
        """The direct sub-layers of a layer of the tree."""
        return self._parts[id(layer)]

    def inside(self, layer: Layer) -> set[int]:
        """The ids of a layer of the tree and of all layers inside it."""
        found: set[int] = set()
        todo = [layer]
        while todo:
            part = todo.pop()
            if id(part) not in found:
                found.add(id(part))
                todo += self.parts(part)
        return found

    def with_inner(self, paths: Iterable[str]) -> set[str]:
        """The given paths, and those of all layers inside their layers."""
        inside: set[int] = set()
        for path in paths:
            inside |= self.inside(self.layers[path])
        return {p for p, layer in self.layers.items() if id(layer) in inside}

    @functools.cached_property
    def head(self) -> frozenset[int]:
        """The ids of the layers that a task has outside its `backbone`."""
        backbone = getattr(self.model, "backbone", None)
        if not isinstance(backbone, keras.layers.Layer) or _is_backbone(
            self.model
        ):
            return frozenset()
        known = id(backbone) in self._parts
        inside = (self if known else LayerTree(backbone)).inside(backbone)
        return frozenset(
            id(layer)
            for layer in self.layers.values()
            # A container around the backbone is not part of the head.
            if layer.variables and inside.isdisjoint(self.inside(layer))
        )


def tree_of(model: Layer) -> LayerTree:
    """The layers of a built model.

    Raises:
        ValueError: if `model` is not a Keras model or layer, or is not built,
            or is or contains the model of a bank.
        RuntimeError: if a loop of Keras holds its weights, on JAX.
    """
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
    tree = LayerTree(model)
    for path, layer in tree.by_path.items():
        # Its adapters are in the bank, not in layers.
        if hasattr(layer, "values_without_adapters"):
            raise ValueError(
                f"'{path or model.name}' is the model of an `AdapterBank`, "
                "which computes with the bank's adapters. Pass the adapted "
                "model that the bank was made of, or use the bank: "
                "`bank.save(name, file)` saves one of its adapters, and "
                "`bank.model.save_weights` all of them."
            )
    if internals.are_lent(model.variables):
        raise RuntimeError(
            "A loop of Keras (`fit`, `evaluate` or `predict`) holds the "
            f"weights of model '{model.name}'. In a callback, use "
            "`self.model` or a part of it: reading this attribute writes the "
            "weights back. After a loop that failed, call the model's "
            "`jax_state_sync()` first."
        )
    return tree


def adapted_tree(model: Layer) -> LayerTree:
    """The layers of a model that has adapters.

    Raises:
        ValueError: if it has none.
    """
    tree = tree_of(model)
    if not tree.adapted:
        raise ValueError(
            f"Model '{model.name}' has no ETHER adapter. Call "
            "`keras_ether.apply(model)` first."
        )
    return tree


def check_not_disabled(tree: LayerTree, verb: str) -> None:
    """Raises a `ValueError` if `disabled` switches off an adapter."""
    for path, layer in tree.adapted.items():
        if layer.ether.is_held_at_zero:
            raise ValueError(
                f"`keras_ether.{verb}` was called within "
                f"`keras_ether.disabled`, where layer '{path}' computes "
                "without its adapter. Call it outside of that block."
            )


def adapted_layers(model: Layer) -> dict[str, Layer]:
    """The layers of a model that have an adapter, by path.

    Raises:
        ValueError: if there is none.
    """
    return adapted_tree(model).adapted


def _stable_name(layer: Layer) -> str:
    # As Keras makes names from those of classes.
    words = re.sub(r"\W+", "", layer.__class__.__name__)
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", words)
    automatic = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    made_up = re.fullmatch(rf"{re.escape(automatic)}(_\d+)?", layer.name)
    return automatic if made_up else layer.name


def _is_backbone(model: Layer) -> bool:
    """Whether a model is a KerasHub backbone, which may hold another one."""
    return any(base.__name__ == "Backbone" for base in type(model).__mro__)
