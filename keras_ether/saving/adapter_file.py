"""Adapter files on disk: safetensors with a JSON header, checked when read.

The header is the entry `keras_ether` of the format's metadata. It names every
tensor of the file, and holds a SHA-256 of itself and of all tensors. Reading
runs no code of the file and touches no other file.
"""

import hashlib
import os
from collections.abc import Iterable
from collections.abc import Set
from dataclasses import dataclass
from typing import Any
from typing import BinaryIO

import numpy as np

from keras_ether.saving import adapter_header
from keras_ether.saving import atomic_write
from keras_ether.saving import hubs
from keras_ether.saving.adapter_header import Header

KEY = "keras_ether"
SUFFIX = ".safetensors"
# Enough for tens of thousands of layers.
LARGEST_HEADER = 2**24
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    # By the package `ml_dtypes`, which Keras imports.
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# The dtypes of tensors that do not follow the model's.
SECTION_DTYPES = {
    "adapter": "float32",
    "random_states": "int64",
    "global_generators": "uint8",
}


@dataclass(frozen=True)
class AdapterFile:
    """The content of an adapter file: its header, and its tensors by name."""

    header: dict
    tensors: dict[str, np.ndarray]


def path_of(filepath: str | os.PathLike, argument: str = "filepath") -> str:
    """The path as a string.

    Raises:
        ValueError: if it is neither a string nor a `PathLike` of one.
    """
    if isinstance(filepath, (str, os.PathLike)):
        path = os.fspath(filepath)
        if isinstance(path, str):
            return path
    raise ValueError(
        f"`{argument}` must be a string or a path. Received: "
        f"{argument}={filepath!r}"
    )


def check_name(filepath: str | os.PathLike) -> str:
    """The path as a string.

    Raises:
        ValueError: if it does not end in `.safetensors`.
    """
    path = path_of(filepath)
    if not path.endswith(SUFFIX):
        raise ValueError(
            f"An adapter file's name must end in '{SUFFIX}'. Received: "
            f"filepath={filepath!r}"
        )
    return path


def write(filepath: str | os.PathLike, content: AdapterFile) -> None:
    """Writes a file as a whole or not at all.

    Raises:
        ValueError: if `read` would not accept the content.
        OSError: if the folder is missing or can't be written to.
    """
    from safetensors.numpy import save

    path = check_name(filepath)
    tensors = {
        name: np.ascontiguousarray(value).reshape(value.shape)
        for name, value in content.tensors.items()
    }
    header = dict(content.header)
    header["sha256"] = digest_of(header, tensors)
    adapter_header.check(header)
    _check_tensors(header, tensors)
    metadata = {KEY: adapter_header.to_text(header)}
    atomic_write.write(path, save(tensors, metadata))


def read(filepath: str | os.PathLike) -> AdapterFile:
    """Reads a file and makes every check that needs no model.

    Raises:
        ValueError: if it is damaged, or not an adapter file.
        ImportError: if it is on a hub whose library is not installed.
        OSError: if it does not exist, or the hub can't provide it.
    """
    path = path_of(filepath)
    if hubs.is_handle(path):
        path = hubs.download(path)
    with open(path, "rb") as file:
        try:
            return _read(file)
        except ValueError as error:
            raise ValueError(
                f"Adapter file '{path}' can't be read: {error}."
            ) from error


def _read(file: BinaryIO) -> AdapterFile:
    import safetensors

    start = file.read(8)
    length = int.from_bytes(start, "little")
    size = os.fstat(file.fileno()).st_size
    if len(start) < 8 or 8 + length > size:
        raise ValueError("it is truncated, or not a safetensors file")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header is {length:,} bytes long")
    text = file.read(length)
    header = _header_of(text)
    try:
        entries = safetensors.deserialize(start + text + file.read())
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is damaged ({error})") from None
    tensors = {name: _array(name, entry) for name, entry in entries}
    _check_tensors(header, tensors)
    if header["sha256"] != digest_of(header, tensors):
        raise ValueError("it is damaged: its checksum does not match its data")
    return AdapterFile(header, tensors)


def _header_of(text: bytes) -> Header:
    outer = adapter_header.from_text(text.decode())
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    inner = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(inner, str):
        raise ValueError("it is not an adapter file of keras_ether")
    header = adapter_header.from_text(inner)
    adapter_header.check(header)
    # Before anything else is read.
    _check_names(header, outer.keys() - {"__metadata__"})
    return header


def _array(name: str, entry: dict[str, Any]) -> np.ndarray:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"tensor '{name}' has dtype {entry['dtype']}")
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def _check_names(header: Header, names: Set[str]) -> None:
    expected = adapter_header.tensor_names(header)
    if names != expected:
        raise ValueError(
            f"it lacks the tensors {_some(expected - names)} and has the "
            f"unexpected {_some(names - expected)}"
        )


def _check_tensors(header: Header, tensors: dict[str, np.ndarray]) -> None:
    _check_names(header, tensors.keys())
    for name, value in tensors.items():
        dtype = SECTION_DTYPES.get(name.partition("/")[0])
        received = value.dtype.name
        if received not in DTYPES.values() or received != (dtype or received):
            raise ValueError(f"tensor '{name}' has dtype {received}")
        # A signalling NaN is an answer here, not a reason to warn.
        with np.errstate(invalid="ignore"):
            is_finite = "float" not in received or np.isfinite(value).all()
        if not is_finite:
            raise ValueError(f"tensor '{name}' has values that are not finite")


def digest_of(header: Header, tensors: dict[str, np.ndarray]) -> str:
    header = {k: v for k, v in header.items() if k != "sha256"}
    digest = hashlib.sha256(adapter_header.to_text(header).encode())
    for name in sorted(tensors):
        value = tensors[name]
        described = f"\0{name}\0{value.dtype.name}\0{value.shape}\0"
        digest.update(described.encode() + value.tobytes())
    return digest.hexdigest()


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f", and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{names[:4]}{more}"
