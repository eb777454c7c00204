import sys

import numpy as np
import pytest

import keras_ether
from keras_ether import diagnostics
from tests import models

HISTORY = [
    {
        "step": step,
        "epoch": 0,
        "distance": {"a": 0.1 * step, "b": 0.2 * step},
        "kernel_distance": {"a": 0.01 * step, "b": 0.02 * step},
    }
    for step in (0, 5, 10)
]


@pytest.fixture(autouse=True)
def matplotlib():
    pytest.importorskip("matplotlib")


@pytest.fixture
def diagnosis():
    model = keras_ether.apply(models.bert_backbone(), method="ether", seed=0)
    return diagnostics.diagnose(model, print_fn=str)


def bars(axes):
    return [bar.get_width() for bar in axes.patches]


def test_distances(diagnosis, tmp_path):
    figure = diagnostics.plot_distances(diagnosis)
    block, kernel = figure.axes
    assert bars(block) == [row.distance for row in diagnosis.rows]
    assert bars(kernel) == [row.kernel_distance for row in diagnosis.rows]
    labels = [label.get_text() for label in block.get_yticklabels()]
    assert labels == [row.path for row in diagnosis.rows]
    figure.savefig(tmp_path / "distances.png")
    assert (tmp_path / "distances.png").stat().st_size > 1000


def test_energy(diagnosis):
    (axes,) = diagnostics.plot_energy(diagnosis).axes
    changes = [100 * row.energy_change for row in diagnosis.rows]
    np.testing.assert_allclose(bars(axes), changes)


def test_training():
    distance, kernel = diagnostics.plot_training(HISTORY).axes
    for axes, key in ((distance, "distance"), (kernel, "kernel_distance")):
        for line, path in zip(axes.lines, "ab", strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [0, 5, 10])
            expected = [entry[key][path] for entry in HISTORY]
            np.testing.assert_array_equal(line.get_ydata(), expected)


def test_nothing_to_plot_is_said():
    model = keras_ether.apply(models.bert_backbone())
    without = diagnostics.diagnose(model, energy=False, print_fn=str)
    with pytest.raises(ValueError, match="energy=True"):
        diagnostics.plot_energy(without)
    with pytest.raises(ValueError, match="Nothing has been logged"):
        diagnostics.plot_training([])


def test_missing_matplotlib_is_named(diagnosis, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: diagnostics.plot_distances(diagnosis),
        lambda: diagnostics.plot_energy(diagnosis),
        lambda: diagnostics.plot_training(HISTORY),
    ):
        with pytest.raises(ImportError, match=r"keras-ether\[plots\]"):
            draw()
