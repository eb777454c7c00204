"""The adapters of a model, as data and as a table."""

import dataclasses
import math
import re
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from typing import TypeVar

from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.types import Variable

__all__ = ["AdaptedLayer", "Report", "Row", "Skipped"]


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer, with its configuration.

    Attributes:
        path: Structural path of the layer.
        layer_class: Name of its class.
        kernel_shape: Shape of its kernel.
        config: `AdapterConfig` with method, blocks, side and dropout.
    """

    path: str
    layer_class: str
    kernel_shape: tuple[int, ...]
    config: AdapterConfig

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.config.method

    @property
    def rank_blocks(self) -> int:
        """Number of blocks per transformed side."""
        return self.config.rank_blocks

    @property
    def side(self) -> str:
        """`"input"`, `"output"` or `"both"`."""
        return self.config.resolved_side


@dataclass(frozen=True)
class Row(AdaptedLayer):
    """One adapted layer, with the size of its adapter.

    Attributes:
        parameters: Number of trained parameters.
    """

    parameters: int


@dataclass(frozen=True)
class Skipped:
    """One layer with a kernel and without an adapter.

    Attributes:
        path: Structural path of the layer.
        layer_class: Name of its class.
        reason: The reason why it has no adapter.
    """

    path: str
    layer_class: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The adapters of a model, or of a plan for it.

    Printing it gives a table.

    Attributes:
        rows: Tuple of `Row`, the adapted layers.
        skipped: Tuple of `Skipped`, layers with a kernel and no adapter.
        trainable: Number of the adapters' trainable parameters.
        head: Number of the other trainable parameters: the task's head, and
            layers in `trainable`.
        frozen: Number of the parameters that don't train.
        notes: Tuple of sentences, such as a warning about sharded blocks.
        base: Number of the base's trainable parameters: weights that `apply`
            froze, and that were made trainable again.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    trainable: int
    head: int
    frozen: int
    notes: tuple[str, ...] = ()
    base: int = 0

    @property
    def percentage(self) -> float:
        """Share of all parameters that train, in percent."""
        trained = self.trainable + self.head + self.base
        return 100.0 * trained / max(trained + self.frozen, 1)

    @property
    def bytes(self) -> int:
        """Size of the adapters' parameters, which are float32."""
        return 4 * self.trainable

    def __str__(self) -> str:
        """The table, with one line for rows that differ only in an index."""
        groups = list(_alike(self.rows))
        texts = {
            "Layer": [_common_path([r.path for r in rows]) for rows in groups],
            "Kernel": [
                " x ".join(map(str, rows[0].kernel_shape)) for rows in groups
            ],
            "Method": [rows[0].config.variant.name for rows in groups],
            "Side": [rows[0].side for rows in groups],
        }
        numbers = {
            "Blocks": [str(rows[0].rank_blocks) for rows in groups],
            "Layers": [str(len(rows)) for rows in groups],
            "Parameters": [
                f"{sum(row.parameters for row in rows):,}" for rows in groups
            ],
        }
        return draw(texts, numbers) + self._totals()

    def _totals(self) -> str:
        plural = "" if len(self.rows) == 1 else "s"
        lines = [
            "",
            f"Adapters:  {self.trainable:>15,} parameters in {len(self.rows)} "
            f"layer{plural} ({_size(self.bytes)})",
            f"Head:      {self.head:>15,} parameters",
        ]
        if self.base:
            lines.append(f"Base:      {self.base:>15,} parameters, thawed")
        lines += [
            f"Frozen:    {self.frozen:>15,} parameters",
            f"Trainable: {self.percentage:>14.3f} %",
        ]
        reasons: dict[str, list[Skipped]] = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped)
        for reason, layers in reasons.items():
            names = ", ".join(
                f"{_common_path([layer.path for layer in alike])} "
                f"({alike[0].layer_class})"
                for alike in _alike(layers)
            )
            lines += _wrap(f"Not adapted, {reason}: {names}")
        for note in self.notes:
            lines += _wrap(note)
        return "\n".join(lines)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=terminal_width(),
        subsequent_indent="  ",
        break_on_hyphens=False,
    )


T = TypeVar("T", AdaptedLayer, Row, Skipped)


def _alike(rows: Iterable[T]) -> Iterable[list[T]]:
    """Groups rows that differ only in the indices in their paths."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        pattern = re.sub(r"\d+", "#", row.path)
        key = dataclasses.replace(row, path=pattern)
        groups.setdefault(key, []).append(row)
    return groups.values()


def _common_path(paths: list[str]) -> str:
    """One path for several, such as `layer_{0..5}/query`."""
    text = re.split(r"\d+", paths[0])
    slots = zip(*(re.findall(r"\d+", path) for path in paths), strict=True)
    common = text[0]
    for numbers, following in zip(slots, text[1:], strict=True):
        distinct = sorted(set(map(int, numbers)))
        if len(distinct) == 1:
            common += numbers[0]
        elif distinct == list(range(distinct[0], distinct[-1] + 1)):
            common += f"{{{distinct[0]}..{distinct[-1]}}}"
        else:
            common += f"{{{','.join(map(str, distinct))}}}"
        common += following
    return common


def draw(texts: dict, numbers: dict) -> str:
    """A table of columns of strings, texts left-aligned, numbers right-aligned.

    It is at most as wide as the terminal (80 columns without a terminal, for
    example in a notebook). If necessary, the first columns, mainly the layers'
    paths, get separate lines above the others.

    Args:
        texts: Dictionary from headings to columns, lists of strings.
        numbers: The same, for the columns after them.
    """
    columns = [*texts.items(), *numbers.items()]
    sizes = [max(map(len, [name, *cells])) for name, cells in columns]
    above = next(
        (
            count
            for count in range(len(texts))
            if sum(sizes[count:]) + 2 * len(sizes[count:]) <= terminal_width()
        ),
        len(texts),
    )

    def lines(*cells: str) -> list[str]:
        aligned = [
            cell.ljust(size) if index < len(texts) else cell.rjust(size)
            for index, (cell, size) in enumerate(zip(cells, sizes, strict=True))
        ]
        line = "  ".join(aligned[above:]).rstrip()
        if not above:
            return [line]
        return [*wrap_path("  ".join(cells[:above])), f"  {line}"]

    head = lines(*(name for name, _ in columns))
    body = [
        line
        for cells in zip(*(cells for _, cells in columns), strict=True)
        for line in lines(*cells)
    ]
    rule = "─" * max(map(len, head + body))
    return "\n".join([*head, rule, *body])


def terminal_width() -> int:
    """The width of the terminal, or the variable `COLUMNS`, at least 40."""
    return max(40, shutil.get_terminal_size().columns)


def wrap_path(path: str) -> list[str]:
    """A path in lines that fit the terminal, broken after a `/`."""
    lines = [""]
    for segment in re.findall("[^/]*/?", path):
        if lines[-1] and len(lines[-1] + segment) > terminal_width():
            lines.append("  ")
        lines[-1] += segment
    return lines


def count(variables: Iterable[Variable]) -> int:
    """Number of parameters in some variables, each counted once."""
    unique = {id(variable): variable for variable in variables}
    return sum(math.prod(v.shape) for v in unique.values())


def _size(number_of_bytes: int) -> str:
    if number_of_bytes < 1e6:
        return f"{number_of_bytes / 1e3:.1f} KB"
    return f"{number_of_bytes / 1e6:.1f} MB"
