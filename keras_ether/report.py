"""What is adapted, as data and as a table."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One adapted layer.

    Attributes:
        path: Structural path of the layer.
        layer_class: Name of its class.
        kernel_shape: Shape of its kernel.
        method: Name of the method.
        rank_blocks: Number of blocks per transformed side.
        side: `"input"`, `"output"` or `"both"`.
        numbers: Count of trained numbers.
    """

    path: str
    layer_class: str
    kernel_shape: tuple[int, ...]
    method: str
    rank_blocks: int
    side: str
    numbers: int


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

    def __str__(self):
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("Layer", overflow="fold")
        table.add_column("Kernel", justify="right")
        table.add_column("Method")
        table.add_column("Side")
        table.add_column("Blocks", justify="right")
        table.add_column("Numbers", justify="right")
        for row in self.rows:
            table.add_row(
                row.path,
                " x ".join(str(size) for size in row.kernel_shape),
                row.method,
                row.side,
                str(row.rank_blocks),
                f"{row.numbers:,}",
            )
        width = 24 + max((len(row.path) for row in self.rows), default=0) + 40
        console = Console(
            width=width, color_system=None, force_terminal=False, record=True
        )
        with console.capture() as capture:
            console.print(table)
        lines = [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join(line for line in lines if line) + self._totals()

    def _totals(self):
        plural = "" if len(self.rows) == 1 else "s"
        lines = [
            "",
            f"Adapters:  {self.trainable:>15,} numbers in {len(self.rows)} "
            f"layer{plural} ({_size(self.bytes)})",
            f"Head:      {self.head:>15,} numbers",
            f"Frozen:    {self.frozen:>15,} numbers",
            f"Trainable: {self.percentage:>14.3f} %",
        ]
        reasons = {}
        for skipped in self.skipped:
            reasons.setdefault(skipped.reason, []).append(skipped)
        for reason, layers in reasons.items():
            names = ", ".join(
                f"{layer.path} ({layer.layer_class})" for layer in layers[:3]
            )
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            lines.append(f"Not adapted, {reason}: {names}{more}")
        return "\n".join(lines)


def count(variables) -> int:
    """Count of the numbers in some variables, each counted once."""
    unique = {id(variable): variable for variable in variables}
    return sum(math.prod(v.shape) for v in unique.values())


def _size(number_of_bytes):
    if number_of_bytes < 1e6:
        return f"{number_of_bytes / 1e3:.1f} KB"
    return f"{number_of_bytes / 1e6:.1f} MB"
