"""Saving adapters to small files, and putting them onto a base again."""

import warnings

from keras_ether import version
from keras_ether.ops.values import to_numpy
from keras_ether.saving import adapter_file
from keras_ether.saving import adapter_header
from keras_ether.saving import atomic_write
from keras_ether.saving import contents
from keras_ether.saving import loading
from keras_ether.saving.adapter_file import AdapterFile
from keras_ether.surgery import insertion
from keras_ether.surgery import undo
from keras_ether.surgery import verbs


def save_adapter(model, filepath, metadata: dict | None = None):
    """Saves a model's adapters and head to one small `.safetensors` file.

    It holds the vectors, the weights that train beside them (the head of a
    KerasHub task, layers kept by `trainable`), and a header: methods, blocks
    and sides by structural layer path, package versions, fingerprints of the
    base and the metadata given. The file is written beside `filepath` and
    renamed, so that there is the old file or the new one at any moment.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        filepath: String or `PathLike`, ending in `".safetensors"`.
        metadata: Dictionary of anything that JSON can hold, or `None`.
            `keras_ether.read_adapter_header` returns it.

    Raises:
        ValueError: if there is no adapter, if `metadata` is no such dictionary,
            or if a vector or weight is not finite. No file is written then.
        OSError: if the folder of `filepath` is missing or can't be written to.

    Example:

    >>> keras_ether.save_adapter(
    ...     model, "m.ether.safetensors", metadata={"task": "reviews"}
    ... )
    """
    filepath = adapter_file.check_name(filepath)
    # Before the base is read for its fingerprint.
    atomic_write.check_place(filepath)
    adapter_file.write(filepath, content_of(model, metadata))


def load_adapter(model, filepath, check_base: bool = True):
    """Puts a file's adapters onto a model, in place.

    A model without adapters gets those of the file, as by `keras_ether.apply`,
    and trains what trained when the file was saved. A model that has the very
    adapters of the file (layers, methods, blocks and sides; dropout may differ)
    gets their values and keeps its `trainable` flags, its dropout and its
    optimizer. Any other adapter is an error: `keras_ether.remove` it first.

    Args:
        model: A built Keras model or layer, the base.
        filepath: String or `PathLike`, a file that `keras_ether.save_adapter`
            or `keras_ether.callbacks.AdapterCheckpoint` wrote.
        check_base: Whether the model must be the base that the adapter was
            trained over, judged by shapes and sampled values of its weights.
            With `False` another one is only warned of. Defaults to `True`.

    Returns:
        The model passed.

    Raises:
        ValueError: if the file is damaged or no adapter file, if it does not
            fit the model, or if the model is another base. The model is then as
            it was.

    Example:

    >>> keras_ether.save_adapter(model, "m.ether.safetensors")
    >>> base = keras_ether.remove(model)
    >>> model = keras_ether.load_adapter(base, "m.ether.safetensors")
    """
    fill = prepare(model, adapter_file.read(filepath), filepath, check_base)
    if fill.is_new:
        insertion.warn_of_outer_model(model)
    with undo.on_error(model) as back:
        if fill.is_new:
            insertion.put_in(model, fill.plan, fill.adapters)
        for variable, value in fill.assignments:
            undo.assign(back, variable, value)
    return model


def read_adapter_header(filepath) -> dict:
    """Reads and checks an adapter file, without a model.

    Args:
        filepath: String or `PathLike`.

    Returns:
        The header, a dictionary: `"adapters"`, a list of groups with
        `"method"`, `"rank_blocks"`, `"side"`, `"dropout"` and `"layers"`, which
        maps structural paths to fingerprints of the base; `"weights"`, the
        names of the weights that came along, by layer path; `"trainable"`, the
        paths of the layers that train as a whole; `"base"`, the fingerprint of
        all other weights; `"versions"` of packages; `"metadata"`; and in a
        checkpoint `"training"`.

    Raises:
        ValueError: if the file is damaged or no adapter file.

    Example:

    >>> keras_ether.save_adapter(model, "m.ether.safetensors")
    >>> header = keras_ether.read_adapter_header("m.ether.safetensors")
    >>> header["adapters"][0]["method"]
    'ether'
    """
    return adapter_file.read(filepath).header


def content_of(model, metadata: dict | None = None) -> AdapterFile:
    """What `save_adapter` writes.

    Raises:
        ValueError: if there is no adapter, or `metadata` is not for JSON.
    """
    adapted = verbs.adapted_layers(model)
    layers = contents.layers_of(model)
    weights = contents.travelling(layers)
    fingerprints = contents.base_fingerprints(layers, adapted, weights)
    header = header_of(layers, adapted, weights, fingerprints, metadata)
    variables = {
        adapter_header.tensor_name("adapter", path, name): vector
        for path, layer in adapted.items()
        for name, vector in layer.ether.vectors.items()
    } | {
        adapter_header.tensor_name("weights", path, name): variable
        for path, own in weights.items()
        for name, variable in own.items()
    }
    return AdapterFile(header, {n: to_numpy(v) for n, v in variables.items()})


def header_of(
    layers: dict, adapted: dict, weights: dict, fingerprints, metadata=None
) -> dict:
    """The header of an adapter file, but for its checksum.

    Args:
        layers: Dictionary from path to layer, see `contents.layers_of`.
        adapted: Those of them that have an adapter in the file.
        weights: What trains beside, see `contents.travelling`.
        fingerprints: Of the base, see `contents.base_fingerprints`.
        metadata: See `save_adapter`.

    Raises:
        ValueError: if `metadata` is not for JSON.
    """
    of_layers, base = fingerprints
    return {
        "format": adapter_header.FORMAT,
        "format_version": adapter_header.FORMAT_VERSION,
        "adapters": _groups(adapted, of_layers),
        "weights": {path: list(own) for path, own in weights.items()},
        "trainable": [p for p in weights if contents.is_kept(layers[p])],
        "base": base,
        "versions": version.of_packages(),
        "metadata": _checked_metadata(metadata),
    }


def prepare(model, content, filepath, check_base=True) -> loading.Fill:
    """Checks a file's content against a model, which stays as it is.

    Raises:
        ValueError: if it does not fit, or the model is another base.
    """
    try:
        fill = loading.Fill(model, content)
    except ValueError as error:
        raise ValueError(
            f"Adapter file '{filepath}' does not fit model '{model.name}': "
            f"{error}"
        ) from error
    problem = _other_base(fill, content.header)
    if problem and check_base:
        raise ValueError(
            f"Adapter file '{filepath}' was trained over another base: "
            f"{problem}. Load the weights it was trained over first, or pass "
            "`check_base=False` to load it regardless."
        )
    if problem:
        warnings.warn(
            f"Adapter file '{filepath}' was trained over another base: "
            f"{problem}. It is loaded regardless.",
            stacklevel=3,
        )
    return fill


def _groups(adapted, fingerprints):
    """The adapted layers, those of one configuration together."""
    groups = {}
    for path, layer in adapted.items():
        adapter = layer.ether
        key = (
            adapter.method,
            adapter.rank_blocks,
            adapter.side,
            float(adapter.dropout),
        )
        groups.setdefault(key, {})[path] = fingerprints[path]
    fields = ("method", "rank_blocks", "side", "dropout")
    return [
        {**dict(zip(fields, key, strict=True)), "layers": layers}
        for key, layers in groups.items()
    ]


def _checked_metadata(metadata):
    metadata = {} if metadata is None else metadata
    try:
        # As it will be read again: JSON has no tuples, and no keys but strings.
        again = adapter_header.from_text(adapter_header.to_text(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        again = error
    if not isinstance(metadata, dict) or again != metadata:
        raise ValueError(
            "`metadata` must be a dictionary from strings to strings, finite "
            "numbers, booleans, None, lists and such dictionaries. "
            f"Received: metadata={metadata!r}"
        )
    return again


def _other_base(fill, header):
    """Says which weights are not those of the file's base, or `None`."""
    layers = adapter_header.layers_of(header)
    of_layers, base = contents.base_fingerprints(
        fill.layers, layers, fill.weights
    )
    others = [
        path
        for path, group in layers.items()
        if of_layers[path] != group["layers"][path]
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
