"""What `model.export` writes, read by the runtime that it is meant for.

The predictions are those of the fine-tuned model, with adapters active as when
they are merged.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ether
from tests import exporting
from tests import kinds
from tests import models
from tests import tuned

NIGHTLY = pytest.mark.nightly
BACKEND = keras.backend.backend()
QUICK = [("functional", "ether+")]
SLOW = [
    ("mlp", "ether"),
    ("mlp", "oft"),
    ("functional", "ether"),
    ("subclassed", "ether"),
    ("subclassed", "ether+"),
    ("bert", "ether"),
    ("bert", "ether+"),
]
CELLS = [
    pytest.param(
        *(*cell, format_),
        marks=[] if cell in QUICK and format_ in ("onnx", "torch") else NIGHTLY,
    )
    for cell in [*QUICK, *SLOW]
    for format_ in exporting.READERS
]
# Exporters and runtimes warn of each other's versions and of their own plans.
pytestmark = pytest.mark.filterwarnings("ignore")


def states(model, x):
    """The model active and merged, with the predictions of either."""
    with keras_ether.disabled(model):
        base = models.call(model, x)
    active = models.call(model, x)
    assert np.abs(active - base).max() > 1e-2
    yield "active", active
    keras_ether.merge(model)
    yield "merged", active


def expect_gaps(request, format_, *names):
    for name in names:
        reason = exporting.GAPS.get((name, format_, BACKEND))
        if reason is not None:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def skip_unless_installed(format_):
    packages = exporting.NEEDS.get((format_, BACKEND))
    if packages is None:
        pytest.skip(f"Keras on {BACKEND} exports no {format_}")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize(("name", "method", "format_"), CELLS)
def test_predictions_of_its_runtime(
    name, method, format_, rng, tmp_path, request
):
    skip_unless_installed(format_)
    expect_gaps(request, format_, name, method)
    model = tuned.adapted(name, method)
    x = models.inputs_of(name, rng, samples=4)
    for state, expected in states(model, x):
        folder = tmp_path / state
        folder.mkdir()
        path = exporting.write(model, x, format_, folder)
        np.testing.assert_allclose(
            exporting.read(path, format_, x), expected, atol=1e-4
        )


@NIGHTLY
@pytest.mark.parametrize("format_", exporting.READERS)
@pytest.mark.parametrize("kind", kinds.LAYERS)
def test_every_kind_of_layer(kind, format_, rng, tmp_path, request):
    skip_unless_installed(format_)
    expect_gaps(request, format_, kind)
    model, x = kinds.model_of(kind), kinds.inputs_of(kind, rng)
    keras_ether.apply(
        model,
        method="ether+",
        targets="all",
        trainable=["head"],
        rank_blocks=2,
        seed=0,
    )
    kinds.randomize(model.get_layer("target"), rng)
    path = exporting.write(model, x, format_, tmp_path)
    np.testing.assert_allclose(
        exporting.read(path, format_, x), models.call(model, x), atol=1e-4
    )


def saved_models(cells, rng, folder):
    """Writes SavedModels; returns their folders and what they should say."""
    expected = {}
    for name, method in cells:
        if (method, "tf_saved_model", BACKEND) in exporting.GAPS:
            continue
        model = tuned.adapted(name, method)
        x = models.inputs_of(name, rng, samples=4)
        for state, predictions in states(model, x):
            place = folder / f"{name} {method} {state}"
            place.mkdir()
            exporting.write(model, x, "tf_saved_model", place)
            arrays = x if isinstance(x, dict) else {"x": x}
            np.savez(place / "inputs.npz", **arrays)
            expected[place] = predictions
    return expected


@pytest.mark.parametrize("cells", [QUICK, pytest.param(SLOW, marks=NIGHTLY)])
def test_saved_model_in_a_process_without_keras(cells, rng, tmp_path):
    skip_unless_installed("tf_saved_model")
    expected = saved_models(cells, rng, tmp_path)
    script = Path(__file__).with_name("bare_tensorflow.py")
    subprocess.run([sys.executable, script, *expected], check=True)
    for place, predictions in expected.items():
        np.testing.assert_allclose(
            np.load(place / "outputs.npy"),
            predictions,
            atol=1e-4,
            err_msg=place.name,
        )


@pytest.mark.parametrize(
    ("format_", "words"),
    [
        (format_, words)
        for (format_, backend), words in exporting.IMPOSSIBLE.items()
        if backend == BACKEND
    ],
)
def test_what_keras_does_not_export(format_, words, rng, tmp_path):
    if format_ == "openvino":
        pytest.importorskip("openvino")
    x = models.inputs_of("mlp", rng)
    with pytest.raises(Exception, match=words):
        exporting.write(models.mlp(), x, format_, tmp_path)
