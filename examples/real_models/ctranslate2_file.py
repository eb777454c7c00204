"""Arrays of a `model.bin` file, the format of CTranslate2."""

import struct
from pathlib import Path

import numpy as np

TYPES = ("float32", "int8", "int16", "int32", "float16")


def read(path: Path) -> dict[str, np.ndarray]:
    """Weights by name, outputs first as in PyTorch."""
    data, place = path.read_bytes(), 0

    def number(form):
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(f"<{form}")
        return value

    def text():
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place].rstrip(b"\0").decode()

    number("I")  # The format's version,
    text()  # the kind of model,
    number("I")  # and its revision.
    arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(TYPES[number("B")])
        size = number("I")
        arrays[name] = np.frombuffer(
            data, dtype, size // dtype.itemsize, place
        ).reshape(shape)
        place += size
    return arrays
