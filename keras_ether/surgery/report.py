"""What is adapted, as data and as a table."""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from typing import TypeVar

from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.types import Variable


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer, and how it is adapted.

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
        parameters: Number of parameters that train.
    """

    parameters: int


@dataclass(frozen=True)
class Skipped:
    """One layer that has a kernel and no adapter, and why."""

    path: str
    layer_class: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The adapters of a model, those it has or those it would get.

    Printing it gives a table.

    Attributes:
        rows: Tuple of `Row`, the adapted layers.
        skipped: Tuple of `Skipped`, layers with a kernel and no adapter.
        trainable: Count of the adapters' trained numbers.
        head: Count of the other trained numbers: the task's head, and layers
            kept trainable.
        frozen: Count of the numbers that don't train.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    trainable: int
    head: int
    frozen: int

    @property
    def percentage(self) -> float:
        """Share of all numbers that train, adapters and head, in percent."""
        trained = self.trainable + self.head
        return 100.0 * trained / max(trained + self.frozen, 1)

    @property
    def bytes(self) -> int:
        """Size of the adapters' numbers, which are float32."""
        return 4 * self.trainable

    def __str__(self) -> str:
        """The table, with one line for rows that differ in numbers only."""
        groups = list(_alike(self.rows))
        texts = {
            "Layer": [_common_path([r.path for r in rows]) for rows in groups],
            "Kernel": [
                " x ".join(map(str, rows[0].kernel_shape)) for rows in groups
            ],
            "Method": [rows[0].method for rows in groups],
            "Side": [rows[0].side for rows in groups],
        }
        numbers = {
            "Blocks": [str(rows[0].rank_blocks) for rows in groups],
            "Layers": [str(len(rows)) for rows in groups],
            "Numbers": [
                f"{sum(row.parameters for row in rows):,}" for rows in groups
            ],
        }
        return draw(texts, numbers) + self._totals()

    def _totals(self) -> str:
        plural = "" if len(self.rows) == 1 else "s"
        lines = [
            "",
            f"Adapters:  {self.trainable:>15,} numbers in {len(self.rows)} "
            f"layer{plural} ({_size(self.bytes)})",
            f"Head:      {self.head:>15,} numbers",
            f"Frozen:    {self.frozen:>15,} numbers",
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
            lines.append(f"Not adapted, {reason}: {names}")
        return "\n".join(lines)


T = TypeVar("T", AdaptedLayer, Row, Skipped)


def _alike(rows: Iterable[T]) -> Iterable[list[T]]:
    """Groups rows that are equal but for the numbers in their paths."""
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
    """A table of columns of strings, texts to the left, numbers to the right.

    Args:
        texts: Dictionary from headings to columns, lists of strings.
        numbers: The same, for the columns behind them.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in texts:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    for cells in zip(*texts.values(), *numbers.values(), strict=True):
        table.add_row(*cells)
    console = Console(
        width=1000,
        color_system=None,
        force_terminal=False,
        # Jupyter's would draw the table itself and capture nothing.
        force_jupyter=False,
    )
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(line for line in lines if line)


def count(variables: Iterable[Variable]) -> int:
    """Count of the numbers in some variables, each counted once."""
    unique = {id(variable): variable for variable in variables}
    return sum(math.prod(v.shape) for v in unique.values())


def _size(number_of_bytes: int) -> str:
    if number_of_bytes < 1e6:
        return f"{number_of_bytes / 1e3:.1f} KB"
    return f"{number_of_bytes / 1e6:.1f} MB"
