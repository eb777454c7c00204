"""Plots of diagnoses, with matplotlib.

Each function returns a `matplotlib.figure.Figure`, which a notebook shows and
`figure.savefig(path)` writes.
"""

from collections.abc import Sequence
from typing import Any

from keras_ether.diagnostics.diagnosis import Diagnosis
from keras_ether.diagnostics.diagnosis import LayerDiagnosis


def plot_distances(diagnosis: Diagnosis) -> Any:
    """Plots the distances of each layer's transformation and kernel as bars.

    Args:
        diagnosis: A `keras_ether.diagnostics.Diagnosis`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `diagnosis` is not a `Diagnosis`.

    Example:

    >>> found = keras_ether.diagnostics.diagnose(model, print_fn=str)
    >>> figure = plot_distances(found)
    >>> len(figure.axes)
    2
    """
    rows = _rows(diagnosis)
    figure, (block, kernel) = _figure(rows, columns=2)
    places = range(len(rows))
    block.barh(places, [row.distance for row in rows], color="#1b7f79")
    block.set_xlabel("‖H − I‖ of the furthest block")
    kernel.barh(
        places, [row.kernel_distance or 0.0 for row in rows], color="#e08a1e"
    )
    kernel.set_xlabel("‖W' − W‖ / ‖W‖")
    figure.suptitle("Distance from the pretrained model, by layer")
    return figure


def plot_energy(diagnosis: Diagnosis) -> Any:
    """Plots the relative change of each layer's hyperspherical energy as bars.

    Args:
        diagnosis: A `keras_ether.diagnostics.Diagnosis` with energies.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `diagnosis` is not a `Diagnosis`, or has no energies.
    """
    rows = [row for row in _rows(diagnosis) if row.energy_change is not None]
    if not rows:
        raise ValueError(
            "The diagnosis has no energies to plot. Call "
            "`diagnose(model, energy=True)` on a model with a kernel that is "
            "not quantized."
        )
    figure, (axes,) = _figure(rows, columns=1)
    changes = [100.0 * (row.energy_change or 0.0) for row in rows]
    axes.barh(range(len(rows)), changes, color="#a03c5b")
    axes.axvline(0.0, color="black", linewidth=1)
    axes.set_xlabel("change of the hyperspherical energy, %")
    figure.suptitle("Hyperspherical energy, by layer")
    return figure


def plot_training(history: Any) -> Any:
    """Plots every layer's distances over the training steps as lines.

    Args:
        history: The `history` of a `keras_ether.diagnostics.DistanceLogger`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if nothing has been logged, or if it is not the history of
            a `DistanceLogger`.
    """
    if not isinstance(history, list) or not all(
        isinstance(entry, dict) for entry in history
    ):
        raise ValueError(
            "`history` must be the `history` of a `DistanceLogger`, a list. "
            f"Received: history={history!r}"
        )
    if not history:
        raise ValueError(
            "Nothing has been logged yet. Pass the `DistanceLogger` to "
            "`model.fit(..., callbacks=[logger])` first."
        )
    figure = _matplotlib_figure()(figsize=(9, 4), layout="constrained")
    steps = [entry["step"] for entry in history]
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("distance", "kernel_distance"),
        ("‖H − I‖ of the furthest block", "‖W' − W‖ / ‖W‖"),
        strict=True,
    ):
        for path in history[0][key]:
            line = [entry[key][path] for entry in history]
            axes.plot(steps, line, color="#1b7f79", alpha=0.5, linewidth=1)
        axes.set_ylim(bottom=0.0)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
    figure.suptitle("Distance from the pretrained model, a line for each layer")
    return figure


def _rows(diagnosis: Diagnosis) -> tuple[LayerDiagnosis, ...]:
    if not isinstance(diagnosis, Diagnosis):
        raise ValueError(
            "`diagnosis` must be what `keras_ether.diagnostics.diagnose` "
            f"returns. Received: diagnosis={diagnosis!r}"
        )
    return diagnosis.rows


def _figure(rows: Sequence[LayerDiagnosis], columns: int) -> Any:
    """A figure with a row of bars for each layer, labelled by its path."""
    figure = _matplotlib_figure()(
        figsize=(5 + 3 * columns, 1 + 0.22 * len(rows)), layout="constrained"
    )
    (axes,) = figure.subplots(1, columns, sharey=True, squeeze=False)
    axes[0].set_yticks(range(len(rows)), [row.path for row in rows], fontsize=7)
    axes[0].invert_yaxis()
    return figure, axes


def _matplotlib_figure() -> type:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed: "
            "`pip install 'keras-ether[plots]'`."
        ) from error
    return Figure
