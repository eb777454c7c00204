"""The values that an adapter file or an adapted model puts into a row."""

import os
import random
from collections.abc import Callable
from collections.abc import Collection
from typing import Any

import numpy as np

from keras_ether.bank.structure import Structure
from keras_ether.ops.fingerprint import fingerprint
from keras_ether.saving import adapter_file
from keras_ether.saving import adapter_header
from keras_ether.saving import contents
from keras_ether.saving import loading
from keras_ether.saving import save_and_load
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.surgery import targets as targets_lib
from keras_ether.types import Variable


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


def check_fits(
    content: AdapterFile,
    structure: Structure,
    digest: Callable[[Variable], np.ndarray],
    name: str,
) -> None:
    """Raises a `ValueError` unless an adapter fits a bank of this structure.

    Args:
        content: The adapter's `AdapterFile`.
        structure: A `Structure`.
        digest: Function from a variable to its fingerprint.
        name: String, the adapter's name, for the error.
    """
    try:
        _check_adapters(content, structure)
        _check_head(content, structure)
        _check_base(content, structure, digest)
    except ValueError as error:
        raise ValueError(
            f"Adapter '{name}' does not fit the bank: {error}"
        ) from error


def covered_by(content: AdapterFile) -> tuple[str, ...]:
    """The paths of the layers that an adapter covers."""
    return tuple(adapter_header.layers_of(content.header))


def values_for(content: AdapterFile, structure: Structure) -> dict[str, Any]:
    """The tensors of an adapter for a bank's row, in the bank's dtypes."""
    groups = adapter_header.layers_of(content.header)
    variables = dict(structure.head)
    for path in groups:
        variables |= structure.vectors(path)
    pairs = loading.pairs(variables, content.tensors)
    return dict(zip(variables, (value for _, value in pairs), strict=True))


def fresh_values(
    structure: Structure, head: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The initial vectors of `apply`, with the given head."""
    rng = np.random.default_rng(random.getrandbits(64))
    values = dict(head)
    for path, layer in structure.adapted.items():
        adapter = layer.ether
        method = adapter.method
        for side, width in adapter.widths.items():
            start = method.start(adapter.blocks, width, rng)
            for weight, value in zip(method.weights, start, strict=True):
                key = f"{side}_{weight}"
                values[adapter_header.tensor_name("adapter", path, key)] = value
    return values


def content_of_row(
    structure: Structure,
    covered: Collection[str],
    values: dict[str, np.ndarray],
    digest: Callable[[Variable], np.ndarray],
) -> AdapterFile:
    """The `AdapterFile` of a row of a bank.

    Args:
        structure: A `Structure`.
        covered: The paths of the layers that the adapter covers.
        values: Dictionary from a tensor's name to its value.
        digest: Function from a variable to its fingerprint.
    """
    adapted = {path: structure.adapted[path] for path in covered}
    layers, weights = structure.layers, structure.weights
    fingerprints = contents.base_fingerprints(layers, adapted, weights, digest)
    header = save_and_load.header_of(layers, adapted, weights, fingerprints)
    names = adapter_header.tensor_names(header)
    return adapter_file.AdapterFile(
        header, {name: values[name] for name in names}
    )


def _check_adapters(content: AdapterFile, structure: Structure) -> None:
    groups = adapter_header.layers_of(content.header)
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
    content: AdapterFile,
    structure: Structure,
    digest: Callable[[Variable], np.ndarray],
) -> None:
    groups = adapter_header.layers_of(content.header)
    of_file = adapter_header.digest_of_base(content.header)
    if of_file is not fingerprint:
        digest = of_file
    of_layers, base = contents.base_fingerprints(
        structure.layers, groups, structure.weights, digest
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
