"""The structure of all adapters of a bank, and stacks of their values."""

from collections.abc import Iterable
from dataclasses import dataclass

import keras

from keras_ether.adapters.adapted import AdaptedCall
from keras_ether.adapters.adapter import Adapter
from keras_ether.bank import heads
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.surgery import verbs
from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Variable

# A lookup in a call: a layer's structural path, and the side of its adapter, or
# "" for its weights.
Asked = tuple[str, str]
# The row of the base.
BASE = 0


class Stack(keras.layers.Layer):
    """The rows of one layer's vectors, or of the weights of a head's layer.

    Args:
        section: The section of the tensors in an adapter file, `"adapter"` or
            `"weights"`.
        layer_path: String, structural path of the layer in its model.
        variables: Dictionary from name to the variable whose values are
            stacked.
        rows: Integer, number of rows, which are zeros at first.

    Attributes:
        layer_path: The argument.
        rows: Dictionary from name to a variable of shape `(rows, ...)`.
    """

    def __init__(
        self,
        section: str,
        layer_path: str,
        variables: dict[str, Variable],
        rows: int,
    ) -> None:
        name = layer_path.replace("/", "_") or "model"
        super().__init__(name=f"{name}_rows", dtype="float32")
        self.section = section
        self.layer_path = layer_path
        self.rows = {
            name: self.add_weight(
                name=self._tensor(name).replace("/", "_"),
                shape=(rows, *variable.shape),
                initializer="zeros",
                dtype=variable.dtype,
                autocast=False,
            )
            for name, variable in variables.items()
        }
        self.built = True

    @property
    def tensors(self) -> dict[str, Variable]:
        """`rows` by the names of tensors in an adapter file."""
        return {self._tensor(name): v for name, v in self.rows.items()}

    def _tensor(self, name: str) -> str:
        return adapter_header.tensor_name(self.section, self.layer_path, name)


def tensors_of(stacks: Iterable[Stack]) -> dict[str, Variable]:
    """The variables of all stacks by the names of tensors in a file."""
    return {n: v for stack in stacks for n, v in stack.tensors.items()}


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
    def head(self) -> dict[str, Variable]:
        """The head's variables by the name of their tensor in a file."""
        return {
            adapter_header.tensor_name("weights", path, name): variable
            for path, own in self.weights.items()
            for name, variable in own.items()
        }

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
    def lookups(self) -> set[Asked]:
        """All lookups that the layers can make in a call."""
        return {
            (path, side)
            for path, layer in self.adapted.items()
            for side in layer.ether.widths
        } | {(path, "") for path in self.weights}

    def stacks(self, rows: int) -> dict[int, Stack]:
        """New stacks, by the id of an `Adapter` or of a layer of the head."""
        return {
            id(layer.ether): Stack("adapter", path, layer.ether.vectors, rows)
            for path, layer in self.adapted.items()
        } | {
            id(self.layers[path]): Stack("weights", path, own, rows)
            for path, own in self.weights.items()
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
