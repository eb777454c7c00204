"""Probe kernels, which show where an exporter writes the kernels.

Only KerasHub's `export_to_transformers` knows the names of another library and
the layout of each kernel there: transposed, or with others in one tensor. So
this module needs no table. It runs the exporter with a probe instead of each
adapted kernel, and searches its output for the probes. The model's variables
don't change.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_ether.types import Layer
from keras_ether.types import Model
from keras_ether.types import Tensor

EXPORT = "export_to_transformers"
WEIGHTS = "model.safetensors"
# Integers below are exact in float32.
BITS = 24

# The probes of one export by layer id; other threads see the kernels.
_probes: contextvars.ContextVar[dict | None] = contextvars.ContextVar(
    "probes", default=None
)


@dataclass(frozen=True)
class Location:
    """Where an exporter writes a kernel, a `(d, f)` matrix.

    Attributes:
        tensor: Name of the tensor.
        shape: Shape of the tensor.
        is_transposed: Whether the tensor holds the kernel as `(f, d)`.
        start: Row and column of the tensor where the kernel starts.
    """

    tensor: str
    shape: tuple[int, int]
    is_transposed: bool
    start: tuple[int, int]


def locations_of(task: Model, layers: dict, folder: str) -> dict[str, Location]:
    """Where KerasHub's exporter writes the kernels of adapted layers.

    Args:
        task: A KerasHub task that can be exported.
        layers: Dictionary from path to adapted layer.
        folder: An empty folder, to which the exporter writes the model.

    Returns:
        Dictionary from path to `Location`, in the order of `layers`.

    Raises:
        ValueError: if the exporter does not know the architecture, or does not
            write a kernel once and as a whole.
    """
    with _probing(layers) as probes:
        try:
            # Bypasses the refusal of an adapted model.
            getattr(type(task), EXPORT)(_without_preprocessor(task), folder)
        except ValueError as error:
            raise ValueError(
                f"KerasHub can't export '{type(task).__name__}': {error}"
            ) from error
    by_path = {path: probes[id(layer)] for path, layer in layers.items()}
    found: dict[str, list[Location]] = {path: [] for path in layers}
    for path, location in _found(os.path.join(folder, WEIGHTS), by_path):
        found[path].append(location)
    for path, locations in found.items():
        if len(locations) != 1:
            raise ValueError(
                f"KerasHub's exporter writes the kernel of layer '{path}' "
                f"{len(locations)} times as a whole, not once. Pass its name "
                "as `skip` to leave its adapter out."
            )
    return {path: locations[0] for path, locations in found.items()}


@dataclass(frozen=True)
class Probe:
    """A `(d, f)` matrix that no other number gives."""

    number: int
    d: int
    f: int

    def matrix(self) -> np.ndarray:
        rows, columns = self._codes()
        return (rows[:, None] ^ columns).astype("float32")

    def corner(self) -> float:
        """The first entry of the matrix."""
        rows, columns = self._codes()
        return float(rows[0] ^ columns[0])

    def _codes(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.number)
        return [
            rng.integers(2**BITS, size=size, dtype="uint32")
            for size in (self.d, self.f)
        ]


@contextlib.contextmanager
def _probing(layers: dict) -> Iterator[dict]:
    """Makes adapted layers return probes as their kernels.

    Yields:
        Dictionary from layer id to `Probe`.
    """
    probes, classes = {}, []
    for number, layer in enumerate(layers.values()):
        adapter = layer.ether
        _, d, f = adapter.view.sizes(adapter.kernel_shape)
        probes[id(layer)] = Probe(number, d, f)
    token = _probes.set(probes)
    try:
        for layer in layers.values():
            layer_class: Any = type(layer)
            classes.append((layer, layer_class))
            layer.__class__ = _probing_class(layer_class)
        yield probes
    finally:
        for layer, layer_class in classes:
            layer.__class__ = layer_class
        _probes.reset(token)


@functools.cache
def _probing_class(layer_class: Any) -> type:
    """The class of an adapted layer that returns its probe as its kernel."""

    def kernel(layer: Layer) -> Tensor:
        probes = _probes.get()
        if probes is None or id(layer) not in probes:
            return layer_class.kernel.fget(layer)
        adapter = layer.ether
        matrix = ops.convert_to_tensor(probes[id(layer)].matrix())
        return adapter.view.from_kernel_matrix(matrix, adapter.kernel_shape)

    def weights(layer: Layer) -> list:
        # Some exporters read a layer's first weight.
        plain = layer_class.weights.fget(layer)
        base = layer.base_kernel
        return [layer.kernel if w is base else w for w in plain]

    members = {"kernel": property(kernel), "weights": property(weights)}
    return type(layer_class.__name__, (layer_class,), members)


def _without_preprocessor(task: Model) -> Model:
    """A copy of the task for its exporter, without a tokenizer to write."""
    other = object.__new__(type(task))
    other.__dict__.update(task.__dict__)
    other.__dict__["preprocessor"] = None
    return other


def _found(filepath: str, probes: dict) -> Iterator[tuple[str, Location]]:
    """Looks for probes in the tensors of a file, one tensor at a time."""
    from safetensors import safe_open

    corners: dict[float, list[str]] = {}
    for path, probe in probes.items():
        corners.setdefault(probe.corner(), []).append(path)
    with safe_open(filepath, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            if len(shape) != 2 or part.get_dtype() != "F32":
                continue
            starts = _starts(part, list(corners))
            if not starts:
                continue
            tensor = file.get_tensor(name)
            for start in starts:
                for path in corners[float(tensor[start])]:
                    matrix = probes[path].matrix()
                    if _is_at(tensor, start, matrix):
                        yield path, Location(name, shape, False, start)
                    elif _is_at(tensor, start, matrix.T):
                        yield path, Location(name, shape, True, start)


def _starts(part: Any, corners: list[float]) -> list[tuple[int, int]]:
    """Possible starts of kernels, which lie below or next to each other."""
    row, column = part[0:1, :][0], part[:, 0:1][:, 0]
    starts = [(0, int(i)) for i in np.flatnonzero(np.isin(row, corners))]
    below = np.flatnonzero(np.isin(column, corners))
    return starts + [(int(i), 0) for i in below if i]


def _is_at(
    tensor: np.ndarray, start: tuple[int, int], expected: np.ndarray
) -> bool:
    top, left = start
    height, width = expected.shape
    part = tensor[top : top + height, left : left + width]
    return np.array_equal(part, expected)
