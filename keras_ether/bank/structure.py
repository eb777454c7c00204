"""The structure that all adapters of a bank share with one adapted model."""

from dataclasses import dataclass

import numpy as np

from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapter import Adapter
from keras_ether.bank import heads
from keras_ether.bank.stacks import Stack
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.surgery import verbs
from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Variable


@dataclass(frozen=True)
class Structure:
    """The adapters and the head of a model, as a bank stacks them.

    Attributes:
        layers: The model's layers by path.
        adapted: Those that have an adapter.
        weights: The head: a dictionary from layer path to a dictionary from
            name to variable.
    """

    layers: dict[str, Layer]
    adapted: dict[str, Layer]
    weights: dict[str, dict[str, Variable]]

    @property
    def heads(self) -> dict[str, dict[str, Variable]]:
        """By layer path, the head's variables by their tensor's name."""
        return {
            path: {
                adapter_header.tensor_name("weights", path, name): variable
                for name, variable in own.items()
            }
            for path, own in self.weights.items()
        }

    @property
    def head(self) -> dict[str, Variable]:
        """The head's variables by the name of their tensor in a file."""
        return {n: v for own in self.heads.values() for n, v in own.items()}

    def vectors(self, path: str) -> dict[str, Variable]:
        """An adapter's vectors by the name of their tensor in a file."""
        return {
            adapter_header.tensor_name("adapter", path, name): vector
            for name, vector in self.adapted[path].ether.vectors.items()
        }

    @property
    def variables(self) -> dict[str, Variable]:
        """All variables of one adapter, by tensor name."""
        vectors = {
            n: v for path in self.adapted for n, v in self.vectors(path).items()
        }
        return vectors | self.head

    @property
    def with_rows(self) -> list[Layer]:
        """The layers of which each adapter has vectors or weights."""
        return [*self.adapted.values(), *(self.layers[p] for p in self.weights)]

    def stacks(self, rows: int) -> dict[Layer, Stack]:
        """New stacks, by the `Adapter` or the layer of the head."""
        return {
            layer.ether: Stack(path, self.vectors(path), rows)
            for path, layer in self.adapted.items()
        } | {
            self.layers[path]: Stack(path, own, rows)
            for path, own in self.heads.items()
        }


def structure_of(model: Model) -> Structure:
    """Reads the structure of a model.

    Raises:
        ValueError: if there is no adapter, or a layer that can't compute each
            example separately.
    """
    tree = verbs.adapted_tree(model)
    adapted = tree.adapted
    for path, layer in adapted.items():
        reason = _refusal_reason(layer)
        if reason:
            raise ValueError(
                f"Layer '{path}' can't have an adapter for each example: "
                f"{reason}. Leave it out with `exclude` of `keras_ether.apply`."
            )
    layers = tree.by_path
    weights = contents.other_trained_weights(layers)
    for path, own in weights.items():
        heads.check(path or model.name, layers[path], own)
    return Structure(layers, adapted, weights)


def base_head(structure: Structure) -> dict[str, np.ndarray]:
    """The values of the model's own head, by tensor name."""
    return {name: to_numpy(value) for name, value in structure.head.items()}


def _refusal_reason(layer: Layer) -> str | None:
    if not isinstance(layer, AdaptedCall):
        return f"the `call` of {type(layer).__name__} folds its kernel"
    if layer.quantization_mode == "float8":
        return "a float8 kernel is folded at each call"
    adapter = layer.ether
    if isinstance(adapter.view, MatrixView) and not _batch_leads(adapter.view):
        return (
            f"in its equation '{adapter.view.equation}' the batch is not the "
            "first axis"
        )
    return _method_refusal(adapter)


def _batch_leads(view: MatrixView) -> bool:
    rows, columns = view.rows + view.experts, view.columns + view.experts
    return (
        view.inputs[0] not in rows
        and view.outputs[0] == view.inputs[0]
        and view.outputs[0] not in columns
    )


def _method_refusal(adapter: Adapter) -> str | None:
    method = adapter.method
    if not method.thin:
        return f"the blocks of '{method.name}' are not reflections of few rows"
    if not method.independent:
        return f"a block of '{method.name}' depends on other blocks"
    if not method.identity_at_zero:
        return (
            f"zero weights of '{method.name}' are not declared to be the "
            "identity, by `identity_at_zero` of the method"
        )
    return None
