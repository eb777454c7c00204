"""`plan` and `summary`: tables of planned and of present adapters."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras

from keras_ether.adapters import eligibility
from keras_ether.adapters import freezing
from keras_ether.adapters import kinds
from keras_ether.adapters.adapter_config import AdapterConfig
from keras_ether.adapters.adapter_config import checked_seed
from keras_ether.adapters.arguments import check_function
from keras_ether.ops import placement
from keras_ether.ops.matrix_view import MatrixView
from keras_ether.surgery import peft_names
from keras_ether.surgery import planning
from keras_ether.surgery.layer_tree import LayerTree
from keras_ether.surgery.layer_tree import tree_of
from keras_ether.surgery.report import Report
from keras_ether.surgery.report import Row
from keras_ether.surgery.report import Skipped
from keras_ether.surgery.report import count
from keras_ether.surgery.targets import Targets
from keras_ether.surgery.targets import shorten
from keras_ether.types import Layer


@peft_names.with_peft_errors
def plan(
    model: Layer,
    rank_blocks: int = 4,
    method: str | None = None,
    targets: Targets = None,
    exclude: Targets = None,
    side: str | None = None,
    trainable: Targets = None,
    dropout: float = 0.0,
    seed: int | None = None,
    strength: float | str | None = None,
    print_fn: Callable[[str], Any] | None = None,
) -> Report:
    """Prints and returns the changes that `keras_ether.apply` would make.

    The model is not changed.

    Args:
        model: A built Keras model or layer.
        rank_blocks: See `keras_ether.apply`, as for the arguments below.
        method: Name of the method, or `None` for the recommended setting.
        targets: The layers to adapt.
        exclude: The layers to leave out, with all layers inside them.
        side: Side that is transformed.
        trainable: Layers that stay trainable, with all layers inside them.
        dropout: Probability that a block is the identity in training.
        seed: Seed of the initial vectors.
        strength: `None`, `"learned"` or a number, the strength of each block.
        print_fn: Function that takes the table, a string no wider than the
            terminal. Defaults to `print`.

    Returns:
        A `keras_ether.surgery.report.Report`: layers matched, layers skipped
        with reasons, counts and bytes.

    Raises:
        ValueError: if `keras_ether.apply` would raise it.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8)])
    >>> table = keras_ether.plan(model, method="ether+", print_fn=str)
    >>> table.trainable
    48
    """
    print_fn = check_function(print_fn, "print_fn") or print
    config = AdapterConfig.from_arguments(
        method, rank_blocks, side, dropout, strength
    )
    checked_seed(seed)
    tree = tree_of(model)
    resolved = planning.make_plan(tree, config, targets, exclude, trainable)
    rows = tuple(
        Row(
            path=target.path,
            layer_class=target.layer.__class__.__name__,
            kernel_shape=target.kernel_shape,
            config=target.config,
            parameters=target.config.parameters(target.sizes),
        )
        for target in resolved.targets
    )
    head = count(
        variable
        for layer in tree.layers.values()
        if id(layer) in resolved.trainable
        for variable in layer.trainable_weights
    )
    report = Report(
        rows=rows,
        skipped=_skipped(tree, rows, resolved.reasons),
        trainable=sum(row.parameters for row in rows),
        head=head,
        frozen=count(model.weights) - head,
        notes=tuple(_notes(resolved.targets)),
    )
    print_fn(str(report))
    return report


def summary(
    model: Layer, print_fn: Callable[[str], Any] | None = None
) -> Report:
    """Prints a table of the adapters that a model has, and returns it.

    Args:
        model: A Keras model or layer, adapted itself or in some of its parts.
        print_fn: Function that takes the table, a string no wider than the
            terminal. Defaults to `print`.

    Returns:
        A `keras_ether.surgery.report.Report`. It lists the adapted layers with
        the shape of their kernels, method, blocks and parameters, and the
        layers without an adapter. Its totals are `trainable` (the adapters),
        `base` (weights that `apply` froze and that train again), `head` (all
        other trainable parameters), `frozen` and `percentage`.

    Raises:
        ValueError: if the model is not built.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
    >>> model = keras_ether.apply(model)
    >>> keras_ether.summary(model, print_fn=str).percentage
    34.61538461538461
    """
    print_fn = check_function(print_fn, "print_fn") or print
    tree = tree_of(model)
    adapters = {path: layer.ether for path, layer in tree.adapted.items()}
    rows = tuple(
        Row(
            path=path,
            layer_class=tree.layers[path].__class__.__name__,
            kernel_shape=adapter.kernel_shape,
            config=adapter.config,
            parameters=count(adapter.vectors.values()),
        )
        for path, adapter in adapters.items()
    )
    vectors = {id(v) for a in adapters.values() for v in a.vectors.values()}
    switches = {id(adapter.runtime_strength) for adapter in adapters.values()}
    thawed = {id(v) for y in tree.all_layers for v in freezing.thawed(y)}
    others = [v for v in model.trainable_weights if id(v) not in vectors]
    base = [v for v in others if id(v) in thawed]
    reasons = {
        path: "kept trainable"
        for path, layer in tree.layers.items()
        if freezing.is_kept_trainable(layer)
    }
    report = Report(
        rows=rows,
        skipped=_skipped(tree, rows, reasons),
        trainable=sum(row.parameters for row in rows),
        head=count(others) - count(base),
        frozen=count(v for v in model.weights if id(v) not in switches)
        - count(model.trainable_weights),
        base=count(base),
    )
    print_fn(str(report))
    return report


def _notes(targets: Iterable[planning.Target]) -> Iterator[str]:
    """Where blocks do not fit the parts that a distribution makes."""
    found: dict[tuple[int, int, str], list[str]] = {}
    for target in targets:
        view, layer = target.view, target.layer
        kernel = getattr(layer, kinds.known_kind(layer).kernel)
        # Codes of a quantized kernel may have another form.
        is_whole = isinstance(kernel, keras.Variable) and (
            tuple(kernel.shape) == target.kernel_shape
        )
        if not isinstance(view, MatrixView) or not is_whole:
            continue
        parts = dict(zip(view.kernel, placement.parts(kernel), strict=True))
        blocks = target.config.rank_blocks
        for side, axes in (("input", view.rows), ("output", view.columns)):
            # A block is a run of rows: only the first of its axes is divided.
            count = parts[axes[0]] if axes else 1
            if target.config.transforms(side) and blocks % count:
                found.setdefault((blocks, count, side), []).append(target.path)
    for (blocks, count, side), paths in found.items():
        yield (
            f"Communication: the mesh cuts the {side} axis of "
            f"{shorten(paths)} in {count} parts, and {blocks} blocks cross "
            "devices. Sums over a block stay on one device if `rank_blocks` is "
            f"a multiple of {count}."
        )


def _skipped(
    tree: LayerTree, rows: tuple[Row, ...], reasons: dict[str, str]
) -> tuple[Skipped, ...]:
    adapted = {row.path for row in rows}
    skipped = []
    for path, layer in tree.by_path.items():
        if path in adapted:
            continue
        known = kinds.kind_of(layer) is not None
        default = "not a target" if known else eligibility.why_unknown(layer)
        if default is not None:
            reason = reasons.get(path, default)
            name = layer.__class__.__name__
            skipped.append(Skipped(path or layer.name, name, reason))
    return tuple(skipped)
