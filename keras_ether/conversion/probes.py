"""Where KerasHub's exporter writes each kernel, found with a small model.

Only `export_to_transformers` knows the names of another library and the layout
of each kernel there: transposed, or with others in one tensor. So this module
needs no table. It exports a twin of the backbone, which has the same layers
with narrow kernels. Each of these kernels is a probe, which is searched for in
the file.
"""

import concurrent.futures
import functools
import math
import os
import random
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
from keras import ops

from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.types import Layer
from keras_ether.types import Model

EXPORT = "export_to_transformers"
WEIGHTS = "model.safetensors"
# Entries of a backbone's config that are widths, and those that are not.
WIDTHS = ("_dim", "hidden_size", "intermediate_size")
NO_WIDTHS = ("kernel_dim",)
HEADS = "_heads"
DTYPE = "dtype"
VOCABULARY = "vocabulary_size"
SMALL_VOCABULARY = 64
# Integers below are exact in float32.
BITS = 24
# The rows and columns of a kernel.
Matrix = tuple[int, int]


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
        folder: An empty folder, to which the exporter writes a small model.

    Returns:
        Dictionary from path to `Location`, in the order of `layers`.

    Raises:
        ValueError: if the exporter does not know the architecture, or does not
            write a kernel once and as a whole.
    """
    paths = {id(y): p for p, y in LayerTree(task.backbone).layers.items()}
    wide = _matrices(task.backbone)
    # Each thread has its own counts of Keras's names, and its own devices of a
    # distribution.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        probes = pool.submit(_export, task, folder).result()
    narrow = {path: (probe.d, probe.f) for path, probe in probes.items()}
    found: dict[str, list[Location]] = {}
    for tensor in _found(os.path.join(folder, WEIGHTS), probes):
        for path, location in tensor.locations(narrow, wide):
            found.setdefault(path, []).append(location)
    result = {}
    for path, layer in layers.items():
        locations = found.get(paths.get(id(layer), ""), [])
        if len(locations) != 1:
            raise ValueError(
                f"KerasHub's exporter writes the kernel of layer '{path}' "
                f"{len(locations)} times as a whole, and not once. Pass its "
                "name as `skip` to leave its adapter out."
            )
        result[path] = locations[0]
    return result


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


def narrower(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a backbone with all widths divided by one number.

    The widths keep their proportions, on which an exporter may rely. The number
    of heads stays, and each is at least two wide.
    """
    divisor = functools.reduce(math.gcd, _divisible(config), 0) or 1
    small = _divided(config, divisor)
    vocabulary = config.get(VOCABULARY, SMALL_VOCABULARY)
    small[VOCABULARY] = min(vocabulary, SMALL_VOCABULARY)
    return {**small, DTYPE: "float32"}


def _is_width(name: Any, value: Any) -> bool:
    return (
        isinstance(value, int)
        and str(name).endswith(WIDTHS)
        and not str(name).endswith(NO_WIDTHS)
    )


def _divisible(config: Any) -> Iterator[int]:
    """Numbers that the divisor of all widths has to divide."""
    if not isinstance(config, dict):
        return
    heads = [v for k, v in config.items() if str(k).endswith(HEADS) and v]
    for name, value in config.items():
        if _is_width(name, value):
            # What is left is even, also for each of the heads.
            parts = 2 * math.lcm(*heads) if "hidden" in name else 2
            yield value // parts if value % parts == 0 else 1
        else:
            yield from _divisible(value)


def _divided(config: Any, divisor: int) -> Any:
    if not isinstance(config, dict):
        return config
    small = {
        name: value // divisor
        if _is_width(name, value)
        else _divided(value, divisor)
        for name, value in config.items()
    }
    # A probe in 16 bits would be rounded.
    return {**small, DTYPE: "float32"} if DTYPE in small else small


def _export(task: Model, folder: str) -> dict[str, Probe]:
    """Exports a twin of the task's backbone, and returns its probes."""
    backbone = task.backbone
    state = random.getstate()
    try:
        twin = type(backbone).from_config(narrower(backbone.get_config()))
    except Exception as error:
        raise ValueError(
            f"A small model of the layers of '{type(backbone).__name__}' can't "
            f"be made from its `get_config`: {error}"
        ) from error
    finally:
        # Keras's initializers draw their seeds from it.
        random.setstate(state)
    layers = LayerTree(twin).layers
    probes = {
        path: Probe(number, *sizes)
        for number, (path, sizes) in enumerate(_matrices(twin).items())
    }
    for path, probe in probes.items():
        layer = layers[path]
        view: Any = kinds.view_of(layer)
        shape = kinds.kernel_shape(layer)
        kernel = view.from_kernel_matrix(
            ops.convert_to_tensor(probe.matrix()), shape
        )
        layer.kernel.assign(kernel)
    try:
        export: Callable = getattr(type(task), EXPORT)
        # The exporter reads only these attributes. Without a preprocessor it
        # writes no tokenizer.
        export(SimpleNamespace(backbone=twin, preprocessor=None), folder)
    except ValueError as error:
        raise ValueError(
            f"KerasHub can't export '{type(task).__name__}': {error}"
        ) from error
    return probes


def _matrices(model: Layer) -> dict[str, Matrix]:
    """The `(d, f)` of every kernel that is one matrix, by path of its layer."""
    found = {}
    for path, layer in LayerTree(model).layers.items():
        kind = kinds.kind_of(layer)
        if kind is not None and kind.linear:
            if kinds.is_adapted(layer):
                # Reading its kernel would compute it.
                shape = layer.ether.kernel_shape
            else:
                shape = kinds.kernel_shape(layer)
            experts, d, f = kinds.view_of(layer).sizes(shape)
            if experts == 1:
                found[path] = d, f
    return found


def _found(filepath: str, probes: dict[str, Probe]) -> Iterator["Tensor"]:
    """Looks for probes in the tensors of a file."""
    from safetensors.numpy import load_file

    corners: dict[float, list[str]] = {}
    for path, probe in probes.items():
        corners.setdefault(probe.corner(), []).append(path)
    for name, values in load_file(filepath).items():
        parts = []
        if values.ndim == 2:
            for row, column in np.argwhere(np.isin(values, list(corners))):
                inside = values[row:, column:]
                for path in corners.get(float(inside[0, 0]), []):
                    matrix = probes[path].matrix()
                    for is_transposed in (False, True):
                        expected = matrix.T if is_transposed else matrix
                        height, width = expected.shape
                        if np.array_equal(inside[:height, :width], expected):
                            start = int(row), int(column)
                            parts.append((path, is_transposed, start))
        if parts:
            yield Tensor(name, values.shape, sorted(parts, key=itemgetter(2)))


@dataclass(frozen=True)
class Tensor:
    """A tensor of the twin's file.

    Attributes:
        name: Its name.
        shape: Its shape.
        parts: The kernels in it, in order: path, whether it is transposed, and
            where it starts.
    """

    name: str
    shape: tuple[int, int]
    parts: list[tuple[str, bool, tuple[int, int]]]

    def locations(
        self, narrow: dict[str, Matrix], wide: dict[str, Matrix]
    ) -> Iterator[tuple[str, Location]]:
        """The locations in the tensor that the model itself has there.

        There are none unless kernels fill the tensor, one after the other.

        Args:
            narrow: Dictionary from path to the `(d, f)` of the twin's kernel.
            wide: Dictionary from path to the `(d, f)` of the model's.
        """
        axis = int(any(start[1] for _, _, start in self.parts))
        at, starts, across = 0, [0], set()
        for path, is_transposed, start in self.parts:
            if path not in wide:
                return
            turn = -1 if is_transposed else 1
            small, large = narrow[path][::turn], wide[path][::turn]
            if start[axis] != at or small[1 - axis] != self.shape[1 - axis]:
                return
            at += small[axis]
            starts.append(starts[-1] + large[axis])
            across.add(large[1 - axis])
        if at != self.shape[axis] or len(across) > 1:
            return
        other = across.pop()
        shape = (other, starts[-1]) if axis else (starts[-1], other)
        for (path, is_transposed, _), first in zip(
            self.parts, starts, strict=False
        ):
            corner = (0, first) if axis else (first, 0)
            yield path, Location(self.name, shape, is_transposed, corner)
