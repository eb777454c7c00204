"""The values that an adapter file or an adapted model puts into a row."""

import os
import random
from collections.abc import Collection
from typing import Any

import numpy as np

from keras_ether.bank.structure import Structure
from keras_ether.saving import adapter_file
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.saving import loading
from keras_ether.saving import save_and_load
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.adapter_header import Group
from keras_ether.surgery import targets as targets_lib


def content_from(source: Any, name: str) -> AdapterFile:
    """The `AdapterFile` of a file or of an adapted model.

    Raises:
        ValueError: if it is neither, or damaged.
    """
    if isinstance(source, str | os.PathLike):
        return adapter_file.read(source)
    if hasattr(source, "weights"):
        return save_and_load.content_of(source)
    raise ValueError(
        f"Adapter '{name}' must be the path of an adapter file, an adapted "
        f"model, or None for initial vectors. Received: {source!r}"
    )


def values_for(
    content: AdapterFile, structure: Structure, name: str
) -> tuple[dict[str, Any], list[str]]:
    """The values of an adapter for a bank's row, in the bank's dtypes.

    Args:
        content: The adapter's `AdapterFile`.
        structure: The bank's `Structure`.
        name: String, the adapter's name, for an error.

    Returns:
        Dictionary from a tensor's name to its value, and the paths of the
        layers that the adapter covers.

    Raises:
        ValueError: if the adapter does not fit.
    """
    covered = adapter_header.layers_of(content.header)
    try:
        _check_adapters(covered, structure)
        _check_head(content, structure)
        _check_base(content, covered, structure)
    except ValueError as error:
        raise ValueError(
            f"Adapter '{name}' does not fit the bank: {error}"
        ) from error
    variables = dict(structure.head)
    for path in covered:
        variables |= structure.vectors(path)
    pairs = loading.pairs(variables, content.tensors)
    values = dict(zip(variables, (value for _, value in pairs), strict=True))
    return values, list(covered)


def initial_values(structure: Structure) -> dict[str, np.ndarray]:
    """The initial vectors of `apply`, by tensor name."""
    rng = np.random.default_rng(random.getrandbits(64))
    return {
        adapter_header.tensor_name("adapter", path, f"{side}_{name}"): value
        for path, layer in structure.adapted.items()
        for side, width in layer.ether.widths.items()
        for name, value in layer.ether.method.initial(
            layer.ether.blocks, width, rng
        ).items()
    }


def content_of_row(
    structure: Structure,
    covered: Collection[str],
    values: dict[str, np.ndarray],
) -> AdapterFile:
    """The `AdapterFile` of a row of a bank.

    Args:
        structure: The bank's `Structure`.
        covered: The paths of the layers that the adapter covers.
        values: Dictionary from a tensor's name to its value.
    """
    adapted = {path: structure.adapted[path] for path in covered}
    layers, weights = structure.layers, structure.weights
    fingerprints = contents.base_fingerprints(layers, adapted, weights)
    header = save_and_load.header_of(layers, adapted, weights, fingerprints)
    names = adapter_header.tensor_names(header)
    return AdapterFile(header, {name: values[name] for name in names})


def _check_adapters(groups: dict[str, Group], structure: Structure) -> None:
    unknown = [path for path in groups if path not in structure.adapted]
    if unknown:
        raise ValueError(
            f"it has adapters for {targets_lib.shorten(unknown)}, but the bank "
            f"only for {targets_lib.shorten(structure.adapted)}."
        )
    for path, group in groups.items():
        wants = str(group.config)
        has = str(structure.adapted[path].ether.config)
        if has != wants:
            raise ValueError(
                f"it adapts {len(groups)} layers and the bank "
                f"{len(structure.adapted)}. Make the bank of a model with the "
                "same `targets`, `method`, `rank_blocks` and `strength`. In "
                f"the bank, layer '{path}' has {has}. Received: {wants}"
            )


def _check_head(content: AdapterFile, structure: Structure) -> None:
    expected = {path: set(own) for path, own in structure.weights.items()}
    received = {p: set(own) for p, own in content.header["weights"].items()}
    if expected != received:
        raise ValueError(
            f"the other trained layers must be {_shown(expected)}. Received: "
            f"{_shown(received)}"
        )


def _check_base(
    content: AdapterFile, groups: dict[str, Group], structure: Structure
) -> None:
    of_layers, base = contents.base_fingerprints(
        structure.layers,
        groups,
        structure.weights,
        adapter_header.digest_of_base(content.header),
    )
    for path, group in groups.items():
        if of_layers[path] != group.layers[path]:
            raise ValueError(
                "it was trained over another base: the weights of layer "
                f"'{path}' differ."
            )
    if base != content.header["base"]:
        raise ValueError(
            "it was trained over another base: the adapted layers agree, but "
            "weights or shapes of other layers differ."
        )


def _shown(weights: dict[str, set[str]]) -> dict[str, list[str]]:
    return {path: sorted(names) for path, names in weights.items()}
