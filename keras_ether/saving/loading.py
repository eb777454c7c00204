"""Matching the values of an adapter file with a model's variables."""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_ether.adapters import kinds
from keras_ether.adapters.adapter import Adapter
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.adapter_header import Group
from keras_ether.saving.adapter_header import Header
from keras_ether.surgery import insertion
from keras_ether.surgery import planning
from keras_ether.surgery import targets as targets_lib
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Layer


@dataclass(frozen=True)
class Fill:
    """The content of an adapter file, checked against one model.

    Attributes:
        tree: The layers of the model.
        weights: The variables that the file's weights are for, by layer path
            and name.
        plan: The adapters to insert first, or `None` if the model has those of
            the file already.
        adapters: Built adapters for the plan, by layer path.
        assignments: Pairs of variable and value.
    """

    tree: LayerTree
    weights: dict[str, dict[str, keras.Variable]]
    plan: planning.Plan | None
    adapters: dict[str, Adapter]
    assignments: list[tuple[keras.Variable, np.ndarray]]

    def put_in(self) -> None:
        """Inserts the adapters, if the model has none yet."""
        if self.plan is not None:
            insertion.put_in(self.plan, list(self.adapters.values()))


def checked(tree: LayerTree, content: AdapterFile) -> Fill:
    """Checks the content of a file against a model, without changing it.

    Raises:
        ValueError: if the content does not fit the model.
    """
    header = content.header
    layers = contents.layers_of(tree)
    groups = adapter_header.layers_of(header)
    _check_paths(layers, [*groups, *header["weights"], *header["trainable"]])
    adapted = {path: layer.ether for path, layer in tree.adapted.items()}
    plan, adapters = None, {}
    if adapted:
        _check_same(adapted, groups)
    else:
        plan = _plan(tree, layers, header)
        paths = [target.path for target in plan.targets]
        built = insertion.build_adapters(plan)
        adapted = adapters = dict(zip(paths, built, strict=True))
    weights = _weights(layers, header, plan)
    variables = {
        adapter_header.tensor_name("adapter", path, name): vector
        for path, adapter in adapted.items()
        for name, vector in adapter.vectors.items()
    } | {
        adapter_header.tensor_name("weights", path, name): variable
        for path, own in weights.items()
        for name, variable in own.items()
    }
    assignments = fitting(variables, content.tensors)
    return Fill(tree, weights, plan, adapters, assignments)


def _weights(
    layers: dict[str, Layer], header: Header, plan: planning.Plan | None
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
    if plan is None:
        needed = contents.trained_beside(layers)
    else:
        needed = {
            path: contents.own_weights(layer)
            for path, layer in layers.items()
            if id(layer) in plan.kept
        }
    have = {id(v) for own in found.values() for v in own.values()}
    for path, own in needed.items():
        missing = [name for name, v in own.items() if id(v) not in have]
        if missing:
            raise ValueError(
                f"the file has no {missing} for layer '{_shown(path)}', which "
                "trains beside the adapters."
            )
    return found


def fitting(variables: dict, tensors: dict) -> list:
    """Pairs of variable and value, each value in its variable's dtype.

    Args:
        variables: Dictionary from name to variable.
        tensors: Dictionary from name to array, with at least the same names.

    Raises:
        ValueError: if a tensor is missing, or has another shape or kind, or a
            value that the variable's dtype does not hold.
    """
    pairs = []
    for name, variable in variables.items():
        where = f"tensor '{name}', for variable '{variable.path}',"
        value = tensors.get(name)
        if value is None:
            raise ValueError(f"{where} is missing.")
        if value.shape != tuple(variable.shape):
            raise ValueError(
                f"{where} must have shape {tuple(variable.shape)}. Received: "
                f"shape={value.shape}"
            )
        cast = _cast(value, variable.dtype)
        if cast is None:
            raise ValueError(
                f"{where} must fit dtype {variable.dtype}. Received: "
                f"dtype={value.dtype.name}"
            )
        pairs.append((variable, cast))
    return pairs


def _cast(value: Any, dtype: str) -> np.ndarray | None:
    """The value in another dtype, or `None` if it does not fit there."""
    if _is_float(value.dtype.name) != _is_float(dtype):
        return None
    # Values out of a dtype's range are an answer here, not a reason to warn.
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
            f"{targets_lib.shorten(map(_shown, unknown))}, which this one does "
            "not have. "
            + (f"Its layers: {shown}." if own else "It holds no layers.")
            + " Load the model that the adapter was trained on."
        )


def _shown(path: str) -> str:
    """A path for a message; weights can belong to the model itself."""
    return path or "(the model itself)"


def _check_same(adapted: dict[str, Adapter], groups: dict[str, Group]) -> None:
    """Raises a `ValueError` unless these adapters are the file's."""
    for path in sorted(adapted.keys() | groups.keys()):
        has = str(adapted[path].config) if path in adapted else "no adapter"
        wants = str(groups[path].config) if path in groups else "no adapter"
        if has != wants:
            raise ValueError(
                f"layer '{path}' has {has}, and in the file {wants}. Call "
                "`keras_ether.remove(model)` first to load the file's adapters "
                "in place of the model's."
            )


def _plan(
    tree: LayerTree, layers: dict[str, Layer], header: Header
) -> planning.Plan:
    """The plan of `apply`, called once for each of the file's groups."""
    for path in adapter_header.layers_of(header):
        if kinds.kind_of(layers[path]) is None:
            raise ValueError(
                f"layer '{path}' of class {type(layers[path]).__name__} can't "
                "have an adapter."
            )
    plans = []
    for group in adapter_header.groups_of(header):
        if not group.layers:
            continue
        plan = planning.make_plan(
            tree,
            group.config,
            targets=functools.partial(_is_in, group),
        )
        planned = {target.path: target.config for target in plan.targets}
        if planned != dict.fromkeys(group.layers, group.config):
            raise ValueError(
                f"of {targets_lib.shorten(group.layers)} only "
                f"{targets_lib.shorten(planned)} can be adapted on "
                f"side='{group.config.side}'."
            )
        plans.append(plan)
    kept = {id(layers[path]) for path in header["trainable"]}
    return dataclasses.replace(
        plans[0],
        targets=tuple(target for plan in plans for target in plan.targets),
        kept=plans[0].kept | kept,
    )


def _is_in(group: Group, path: str, layer: Layer) -> bool:
    return path in group.layers
