"""Matching the values of an adapter file with a model's variables."""

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_ether.adapters import changes
from keras_ether.adapters import kinds
from keras_ether.adapters.adapter import Adapter
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.adapter_header import Group
from keras_ether.saving.adapter_header import Header
from keras_ether.surgery import insertion
from keras_ether.surgery import planning
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.planning import Target
from keras_ether.types import Layer


@dataclass(frozen=True)
class Fill:
    """The content of an adapter file, checked against one model.

    Attributes:
        tree: The layers of the model.
        weights: The variables that the file's weights are for, by layer path
            and name.
        plan: The plan of the file's adapters, or `None` if the model has them
            already.
        adapters: Built adapters for the plan with the file's values, by path.
        assignments: Pairs of variable and value.
    """

    tree: LayerTree
    weights: dict[str, dict[str, keras.Variable]]
    plan: planning.Plan | None
    adapters: dict[str, Adapter]
    assignments: list[tuple[keras.Variable, np.ndarray]]

    def put_in(self, made: changes.Transaction) -> None:
        """Puts in the adapters, unless the model has them, and the values."""
        if self.plan is not None:
            insertion.put_in(made, self.plan, self.adapters)
        for variable, value in self.assignments:
            made.assign(variable, value)


class Expected(NamedTuple):
    """The form of a tensor in a file: that of a variable."""

    shape: tuple[int, ...]
    dtype: str
    path: str

    @classmethod
    def of(cls, variable: keras.Variable) -> "Expected":
        return cls(tuple(variable.shape), variable.dtype, variable.path)


def checked(tree: LayerTree, content: AdapterFile) -> Fill:
    """Checks the content of a file against a model, without changing it.

    Raises:
        ValueError: if the content does not fit the model.
    """
    header = content.header
    layers = tree.by_path
    groups = adapter_header.layers_of(header)
    _check_paths(layers, [*groups, *header["weights"], *header["trainable"]])
    adapted = {path: layer.ether for path, layer in tree.adapted.items()}
    weights = _weights(layers, header)
    if adapted:
        _check_same(adapted, groups)
        _check_complete(contents.other_trained_weights(layers), weights)
        variables = contents.by_tensor(adapted, weights)
        assignments = pairs(variables, content.tensors)
        scales = _scales(adapted, groups)
        assignments = [
            (v, scales[id(v)] * value if id(v) in scales else value)
            for v, value in assignments
        ]
        return Fill(tree, weights, None, {}, assignments)
    trainable = [
        layer
        for path, layer in layers.items()
        if id(layer) in tree.head or path in header["trainable"]
    ]
    plan = planning.Plan.of(
        tree,
        {path: group.config for path, group in groups.items()},
        trainable,
        [
            variable
            for path, own in weights.items()
            if path in groups
            for variable in own.values()
        ],
    )
    _check_complete(
        {
            path: contents.own_weights(layer)
            for path, layer in layers.items()
            if id(layer) in plan.trainable
        },
        weights,
    )
    adapters = insertion.build_adapters(
        plan, lambda target: _adapter(target, content.tensors)
    )
    assignments = pairs(contents.by_tensor({}, weights), content.tensors)
    return Fill(tree, weights, plan, adapters, assignments)


def _adapter(target: Target, tensors: dict[str, np.ndarray]) -> Adapter:
    """The adapter of a file for one layer, unbuilt."""
    shapes = target.config.vector_shapes(target.sizes)
    names = {
        name: adapter_header.tensor_name("adapter", target.path, name)
        for name in shapes
    }
    owner = f"{target.layer.path or target.layer.name}/{kinds.ADAPTER}"
    found = fitting(
        {
            names[name]: Expected(shape, "float32", f"{owner}/{name}")
            for name, shape in shapes.items()
        },
        tensors,
    )
    values = {name: found[names[name]] for name in shapes}
    # Dropout needs a seed, and loading draws none.
    seed = zlib.crc32(target.path.encode()) >> 1
    return Adapter(target.config, seed, values)


def _weights(
    layers: dict[str, Layer], header: Header
) -> dict[str, dict[str, keras.Variable]]:
    """The model's variables for the file's weights."""
    found = {}
    for path, names in header["weights"].items():
        own = contents.own_weights(layers[path])
        unknown = set(names) - own.keys()
        if unknown:
            raise ValueError(
                f"layer '{_shown(path)}' has no weights {sorted(unknown)}, it "
                f"has {sorted(own)}."
            )
        found[path] = {name: own[name] for name in names}
    return found


def _check_complete(
    needed: dict[str, dict[str, keras.Variable]],
    found: dict[str, dict[str, keras.Variable]],
) -> None:
    """Raises a `ValueError` unless a file has all weights that train."""
    have = {id(v) for own in found.values() for v in own.values()}
    for path, own in needed.items():
        missing = [name for name, v in own.items() if id(v) not in have]
        if missing:
            raise ValueError(
                f"the file has no {missing} for layer '{_shown(path)}', which "
                "trains too."
            )


def pairs(
    variables: dict[str, keras.Variable], tensors: dict[str, np.ndarray]
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Pairs of variable and value, see `fitting`."""
    expected = {name: Expected.of(v) for name, v in variables.items()}
    found = fitting(expected, tensors)
    return [(variable, found[name]) for name, variable in variables.items()]


def fitting(
    expected: dict[str, Expected], tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors of a file in the form of the variables that they are for.

    Raises:
        ValueError: if a tensor is missing, or has another shape or kind, or a
            value that the variable's dtype does not hold.
    """
    found = {}
    for name, form in expected.items():
        where = f"tensor '{name}', for variable '{form.path}',"
        value = tensors.get(name)
        if value is None:
            raise ValueError(f"{where} is missing.")
        if value.shape != form.shape:
            raise ValueError(
                f"{where} must have shape {form.shape}. Received: "
                f"shape={value.shape}"
            )
        cast = _cast(value, form.dtype)
        if cast is None:
            raise ValueError(
                f"{where} must fit dtype {form.dtype}. Received: "
                f"dtype={value.dtype.name}"
            )
        found[name] = cast
    return found


def _cast(value: Any, dtype: str) -> np.ndarray | None:
    """The value in another dtype, or `None` if it does not fit there."""
    if _is_float(value.dtype.name) != _is_float(dtype):
        return None
    # Values out of a dtype's range are expected here and need no warning.
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
        if _is_float(dtype):
            fits = np.isfinite(cast.astype("float64")).all()
        else:
            fits = np.array_equal(cast.astype(value.dtype), value)
    return cast if fits else None


def _is_float(dtype: str) -> bool:
    return "float" in dtype


def _check_paths(layers: dict[str, Layer], paths: Iterable[str]) -> None:
    """Raises a `ValueError` unless a model has all layers of a file."""
    unknown = [path for path in dict.fromkeys(paths) if path not in layers]
    if unknown:
        own = [path for path, layer in layers.items() if path and layer.weights]
        shown = targets_lib.shorten(own)
        raise ValueError(
            "it was saved from a model with the layers "
            f"{targets_lib.shorten(map(_shown, unknown))}, which this model "
            "does not have. "
            + (f"Its layers: {shown}." if own else "It holds no layers.")
            + " Load the model that the adapter was trained on."
        )


def _shown(path: str) -> str:
    """A path for a message; weights can belong to the model itself."""
    return path or "(the model itself)"


def _check_same(adapted: dict[str, Adapter], groups: dict[str, Group]) -> None:
    """Raises a `ValueError` unless these adapters are the file's."""
    for path in sorted(adapted.keys() | groups.keys()):
        has = adapted[path].config if path in adapted else "no adapter"
        wants = groups[path].config if path in groups else "no adapter"
        if _without_multiplier(has) != _without_multiplier(wants):
            raise ValueError(
                f"layer '{path}' has {has}, and in the file {wants}. To "
                "replace the model's adapters by the file's, call "
                "`keras_ether.remove(model)` first."
            )


def _without_multiplier(config: AdapterConfig | str) -> str:
    if isinstance(config, AdapterConfig):
        config = dataclasses.replace(config, rate_multiplier=1.0)
    return str(config)


def _scales(
    adapted: dict[str, Adapter], groups: dict[str, Group]
) -> dict[int, np.float32]:
    """Factors for vectors of another rate multiplier, by variable.

    They give the same blocks by variables of another scale.
    """
    return {
        id(vector): adapter.config.scale_of(groups[path].config.rate_multiplier)
        for path, adapter in adapted.items()
        for vector in adapter.vectors.values()
        if groups[path].config.rate_multiplier != adapter.config.rate_multiplier
    }
