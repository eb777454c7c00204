"""Putting the values of an adapter file into a model: what fits where."""

import dataclasses

import numpy as np

from keras_ether.adapters import kinds
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.surgery import insertion
from keras_ether.surgery import planning
from keras_ether.surgery import targets as targets_lib


class Fill:
    """The content of an adapter file, checked against one model.

    Making it changes nothing. If it `is_new`, the adapters have to be put in;
    then come the assignments.

    Args:
        model: A built Keras model or layer.
        content: An `AdapterFile`.

    Attributes:
        layers: The model's layers by path.
        weights: The variables that the file's weights are for, by layer path
            and name.
        is_new: Whether the model has no adapters yet.
        plan: What `insertion.put_in` has to do then.
        adapters: Built adapters for it.
        assignments: Pairs of variable and value.

    Raises:
        ValueError: if the content does not fit the model.
    """

    def __init__(self, model, content):
        planning.check_built(model)
        header = content.header
        self.layers = contents.layers_of(model)
        groups = adapter_header.layers_of(header)
        _check_paths(
            self.layers, [*groups, *header["weights"], *header["trainable"]]
        )
        adapted = {
            path: layer.ether
            for path, layer in self.layers.items()
            if kinds.is_adapted(layer)
        }
        self.is_new = not adapted
        if self.is_new:
            self.plan = _plan(model, self.layers, header)
            self.adapters = insertion.build_adapters(model, self.plan)
            paths = [target.path for target in self.plan.targets]
            adapted = dict(zip(paths, self.adapters, strict=True))
        else:
            _check_same(adapted, groups)
        self.weights = self._weights(model, header)
        variables = {
            adapter_header.tensor_name("adapter", path, name): vector
            for path, adapter in adapted.items()
            for name, vector in adapter.vectors.items()
        } | {
            adapter_header.tensor_name("weights", path, name): variable
            for path, own in self.weights.items()
            for name, variable in own.items()
        }
        self.assignments = fitting(variables, content.tensors)

    def _weights(self, model, header):
        """The model's variables for the file's weights."""
        found = {}
        for path, names in header["weights"].items():
            own = contents.own_weights(self.layers[path])
            unknown = set(names) - own.keys()
            if unknown:
                raise ValueError(
                    f"layer '{path}' has no weights {sorted(unknown)}, it has "
                    f"{sorted(own)}."
                )
            found[path] = {name: own[name] for name in names}
        needed = contents.travelling(self.layers)
        if self.is_new:
            needed = {
                path: contents.own_weights(layer)
                for path, layer in self.layers.items()
                if id(layer) in self.plan.kept
            }
        have = {id(v) for own in found.values() for v in own.values()}
        for path, own in needed.items():
            missing = [name for name, v in own.items() if id(v) not in have]
            if missing:
                raise ValueError(
                    f"the file has no {missing} for layer '{path}', which is "
                    "one that trains beside the adapters."
                )
        return found


def fitting(variables: dict, tensors: dict) -> list:
    """Pairs of variable and value, each value in its variable's dtype.

    Args:
        variables: Dictionary from name to variable.
        tensors: Dictionary from name to array, with the same names and others.

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


def _cast(value, dtype):
    """The value in another dtype, or `None` if it does not fit there."""
    if _is_float(value.dtype.name) != _is_float(dtype):
        return None
    # Out of the range of a dtype is an answer here, no reason to warn.
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
        if _is_float(dtype):
            fits = np.isfinite(cast.astype("float64")).all()
        else:
            fits = np.array_equal(cast.astype(value.dtype), value)
    return cast if fits else None


def _is_float(dtype):
    return "float" in dtype


def _check_paths(layers, paths):
    unknown = [path for path in paths if path not in layers]
    if unknown:
        raise ValueError(
            f"it has no layers {targets_lib.shorten(unknown)}. Its layers: "
            f"{targets_lib.shorten(layers)}."
        )


def _check_same(adapted, groups):
    """Raises a `ValueError` unless these adapters are the file's."""
    for path in sorted(adapted.keys() | groups.keys()):
        has = described(adapted[path]) if path in adapted else "no adapter"
        wants = groups.get(path)
        wants = described_group(wants) if wants else "no adapter"
        if has != wants:
            raise ValueError(
                f"layer '{path}' has {has}, and in the file {wants}. Call "
                "`keras_ether.remove(model)` first to load the file's adapters "
                "in place of the model's."
            )


def described(adapter):
    return (
        f"method='{adapter.method}', rank_blocks={adapter.rank_blocks}, "
        f"side='{adapter.side}'"
    )


def described_group(group):
    return (
        f"method='{group['method']}', rank_blocks={group['rank_blocks']}, "
        f"side='{group['side']}'"
    )


def _plan(model, layers, header):
    """What `apply` would do, called once for each of the file's groups."""
    for path in adapter_header.layers_of(header):
        if kinds.kind_of(layers[path]) is None:
            raise ValueError(
                f"layer '{path}' of class {type(layers[path]).__name__} can't "
                "have an adapter."
            )
    plans = []
    for group in header["adapters"]:
        if not group["layers"]:
            continue
        plan = planning.make_plan(
            model,
            rank_blocks=group["rank_blocks"],
            method=group["method"],
            targets=lambda path, layer, g=group: path in g["layers"],
            side=group["side"],
            dropout=group["dropout"],
        )
        planned = {target.path: target.side for target in plan.targets}
        if planned != dict.fromkeys(group["layers"], group["side"]):
            raise ValueError(
                f"of {targets_lib.shorten(group['layers'])} only "
                f"{targets_lib.shorten(planned)} can be adapted on "
                f"side='{group['side']}'."
            )
        plans.append(plan)
    kept = {id(layers[path]) for path in header["trainable"]}
    return dataclasses.replace(
        plans[0],
        targets=tuple(target for plan in plans for target in plan.targets),
        kept=plans[0].kept | kept,
    )
