"""Saving adapters to small files, and loading them into a base model."""

import os
import warnings
from typing import Any

from keras_ether import version
from keras_ether.adapters import changes
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.arguments import check_boolean
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_card
from keras_ether.saving import adapter_file
from keras_ether.saving import adapter_header
from keras_ether.saving import atomic_write
from keras_ether.saving import contents
from keras_ether.saving import hubs
from keras_ether.saving import loading
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.saving.adapter_header import Header
from keras_ether.surgery.layer_tree import adapted_tree
from keras_ether.surgery.layer_tree import tree_of
from keras_ether.types import Layer
from keras_ether.types import Variable


def save_adapter(
    model: Layer, filepath: str | os.PathLike, metadata: dict | None = None
) -> None:
    """Saves a model's adapters and head to one small `.safetensors` file.

    The file holds the vectors, the other trained weights (the head of a
    KerasHub task, layers in `trainable`) and a header. The header has methods,
    blocks and sides by structural layer path, package versions, fingerprints of
    the base, and `metadata`. Writing is atomic: at any moment either the old
    file or the new file exists.

    On a hub, a model card `README.md` is written too. This needs the hub's own
    library, `huggingface_hub` or `kagglehub`, and a log-in.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        filepath: String or `PathLike`, ending in `".safetensors"`; or an
            address on a hub, `"hf://user/repository"` or
            `"kaggle://user/model/framework/variation"`, followed by a file name
            unless it is `"adapter.ether.safetensors"`.
        metadata: Dictionary that JSON can hold, or `None`.
            `keras_ether.read_adapter_header` returns it.

    Raises:
        ValueError: if there is no adapter, if `metadata` is not such a
            dictionary, or if a vector or weight is not finite. No file is
            written then.
        OSError: if the folder of `filepath` or the hub is missing or can't be
            written to.
        ImportError: if the hub's library is not installed.

    Example:

    >>> keras_ether.save_adapter(
    ...     model, "m.ether.safetensors", metadata={"task": "reviews"}
    ... )
    """
    if hubs.is_handle(filepath):
        hubs.library(hubs.parse(filepath))
        content = content_of(model, metadata)
        hubs.upload(
            filepath,
            lambda path: adapter_file.write(path, content),
            adapter_card.of_adapter_file(content, os.fspath(filepath)),
        )
        return
    filepath = adapter_file.check_name(filepath)
    # Check first: computing the fingerprint reads the whole base.
    atomic_write.check_place(filepath)
    adapter_file.write(filepath, content_of(model, metadata))


def load_adapter(
    model: Layer, filepath: str | os.PathLike, check_base: bool = True
) -> Layer:
    """Loads a file's adapters into a model, in place.

    A model without adapters gets the adapters of the file, as from
    `keras_ether.apply`, and trains the same weights as the saved model. A model
    with the same adapters as the file (layers, methods, blocks, sides and
    strengths; dropout and `κ` may differ) gets the file's values. It keeps its
    `trainable` flags, its dropout, its `κ` and its optimizer: vectors of
    another `κ` are scaled, so that the blocks are the same. Other adapters are
    an error: call `keras_ether.remove` first.

    Args:
        model: A built Keras model or layer, the base.
        filepath: String or `PathLike`, a file of `keras_ether.save_adapter` or
            `keras_ether.callbacks.AdapterCheckpoint`, or an address on a hub.
        check_base: Boolean, whether the model must be the base that the adapter
            was trained over. The check compares fingerprints of the names,
            shapes and all float32 values of the base weights. (Files of
            format_version 1 and 2 have fingerprints of 4,096 values per
            weight.) With `False` another base only gives a warning. Defaults to
            `True`.

    Returns:
        The model passed.

    Raises:
        ValueError: if the file is damaged or not an adapter file, if it does
            not fit the model, or if the model is another base. An error leaves
            the model unchanged.

    Example:

    >>> keras_ether.save_adapter(model, "m.ether.safetensors")
    >>> base = keras_ether.remove(model)
    >>> model = keras_ether.load_adapter(base, "m.ether.safetensors")
    """
    fill = prepare(model, adapter_file.read(filepath), filepath, check_base)
    with changes.all_or_none() as made:
        fill.put_in(made)
    return model


def read_adapter_header(filepath: str | os.PathLike) -> dict:
    """Reads and checks an adapter file, without a model.

    Args:
        filepath: String or `PathLike`.

    Returns:
        The header, a dictionary. `"adapters"` is a list of groups with
        `"method"`, `"rank_blocks"`, `"side"`, `"dropout"` and `"layers"`, which
        maps structural paths to fingerprints of the base. `"weights"` has the
        names of the other saved weights, by layer path. `"trainable"` has the
        paths of the layers that train as a whole. `"base"` is the fingerprint
        of all other weights. `"versions"` has the versions of packages.
        `"metadata"` is the dictionary passed to `save_adapter`. A checkpoint
        also has `"training"`.

    Raises:
        ValueError: if the file is damaged or not an adapter file.

    Example:

    >>> keras_ether.save_adapter(model, "m.ether.safetensors")
    >>> header = keras_ether.read_adapter_header("m.ether.safetensors")
    >>> header["adapters"][0]["method"]
    'ether'
    """
    return adapter_file.read(filepath).header


def content_of(model: Layer, metadata: dict | None = None) -> AdapterFile:
    """The content that `save_adapter` writes.

    Raises:
        ValueError: if there is no adapter, or if JSON can't hold `metadata`.
    """
    tree = adapted_tree(model)
    adapted = tree.adapted
    layers = tree.by_path
    weights = contents.other_trained_weights(layers)
    fingerprints = contents.base_fingerprints(layers, adapted, weights)
    header = header_of(layers, adapted, weights, fingerprints, metadata)
    variables = contents.by_tensor(
        {path: layer.ether for path, layer in adapted.items()}, weights
    )
    return AdapterFile(header, {n: to_numpy(v) for n, v in variables.items()})


def header_of(
    layers: dict[str, Layer],
    adapted: dict[str, Layer],
    weights: dict[str, dict[str, Variable]],
    fingerprints: tuple[dict[str, str], str],
    metadata: dict | None = None,
) -> Header:
    """The header of an adapter file, without its checksum.

    Args:
        layers: All layers, see `LayerTree.by_path`.
        adapted: Those of them that have an adapter in the file.
        weights: See `contents.other_trained_weights`.
        fingerprints: See `contents.base_fingerprints`.
        metadata: See `save_adapter`.

    Raises:
        ValueError: if JSON can't hold `metadata`.
    """
    of_layers, base = fingerprints
    groups: dict[AdapterConfig, dict[str, str]] = {}
    for path, layer in adapted.items():
        groups.setdefault(layer.ether.config, {})[path] = of_layers[path]
    return {
        "format": adapter_header.FORMAT,
        "format_version": adapter_header.FORMAT_VERSION,
        "adapters": [
            config.to_dict() | {"layers": own} for config, own in groups.items()
        ],
        "weights": {path: list(own) for path, own in weights.items()},
        "trainable": [
            p for p in weights if contents.trains_as_whole(layers[p])
        ],
        "base": base,
        "versions": version.of_packages(),
        "metadata": _checked_metadata(metadata),
    }


def prepare(
    model: Layer,
    content: AdapterFile,
    filepath: str | os.PathLike,
    check_base: bool = True,
) -> loading.Fill:
    """Checks a file's content against a model, which stays as it is.

    Raises:
        ValueError: if it does not fit, or the model is another base.
    """
    tree = tree_of(model)
    check_base = check_boolean(check_base, "check_base")
    try:
        fill = loading.checked(tree, content)
    except ValueError as error:
        raise ValueError(
            f"Adapter file '{filepath}' does not fit model '{model.name}': "
            f"{error}"
        ) from error
    problem = _other_base(fill, content.header)
    if problem and check_base:
        raise ValueError(
            f"Adapter file '{filepath}' was trained over another base: "
            f"{problem}. Load the base weights of its training first, or pass "
            "`check_base=False` to skip this check."
        )
    if problem:
        warnings.warn(
            f"Adapter file '{filepath}' was trained over another base: "
            f"{problem}. It is loaded because of `check_base=False`.",
            stacklevel=3,
        )
    return fill


def _checked_metadata(metadata: dict[str, Any] | None) -> dict[str, Any]:
    metadata = {} if metadata is None else metadata
    try:
        # As a later read returns it: JSON has no tuples, and only string keys.
        again = adapter_header.from_text(adapter_header.to_text(metadata))
    except (TypeError, ValueError, RecursionError):
        again = None
    if not isinstance(metadata, dict) or again != metadata:
        raise ValueError(
            "`metadata` must be a dictionary from strings to strings, finite "
            "numbers, booleans, None, lists and such dictionaries. "
            f"Received: metadata={metadata!r}"
        )
    return again


def _other_base(fill: loading.Fill, header: Header) -> str | None:
    """A text on weights that differ from the file's base, or `None`."""
    layers = adapter_header.layers_of(header)
    of_layers, base = contents.base_fingerprints(
        fill.tree.by_path,
        layers,
        fill.weights,
        adapter_header.digest_of_base(header),
    )
    others = [
        path
        for path, group in layers.items()
        if of_layers[path] != group.layers[path]
    ]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"the weights of '{others[0]}'{more} differ"
    if base != header["base"]:
        return (
            "the adapted layers agree, but weights or shapes of other layers "
            "differ"
        )
    return None
