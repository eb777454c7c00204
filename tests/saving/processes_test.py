"""The same files in other processes, without the package, on every backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ether
from tests import models
from tests import tuned
from tests.saving import files
from tests.saving import matrix
from tests.saving import whole_models_test as cells

ROOT = Path(__file__).parents[2]
pytestmark = cells.pytestmark


def write_all(folder):
    """Saves every model in every way; returns what `reader.py` reads.

    Merged ones are plain, and each is saved in one of the ways.
    """
    entries = []
    for number, (name, method) in enumerate(cells.NAMES.items()):
        base = folder / f"{name}.weights.h5"
        tuned.base(name).save_weights(base)
        adapter = folder / f"{name}.safetensors"
        keras_ether.save_adapter(
            cells.fine_tuned(name, "active").model, adapter
        )
        for state in ("active", "merged"):
            saved = cells.fine_tuned(name, state)
            arrays = saved.x if isinstance(saved.x, dict) else {"x": saved.x}
            np.savez(
                folder / f"{name}-{state}.npz", expected=saved.active, **arrays
            )
            np.savez(
                folder / f"{name}-{state}-weights.npz",
                **{str(i): v for i, v in enumerate(saved.weights)},
            )
            ways = cells.ways(name)
            if state == "merged":
                ways = [matrix.SAVED[number]]
            for how in ways:
                place = folder / f"{name}-{state}-{how}"
                place.mkdir()
                entries.append(
                    {
                        "id": place.name,
                        "name": name,
                        "method": method,
                        "how": how,
                        "path": str(files.save(saved.model, how, place)),
                        "base": str(base),
                        "adapter": str(adapter),
                        "arrays": str(folder / f"{name}-{state}.npz"),
                        "weights": str(folder / f"{name}-{state}-weights.npz"),
                        "resumes": state == "active" and name != "subclassed",
                    }
                )
    return entries


def standalone_entry(folder):
    """A model of `keras_ether.layers`, which a plain process can't read."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras_ether.layers.EtherDense(4, rank_blocks=2, seed=0),
        ]
    )
    model.save(folder / "standalone.keras")
    x = np.ones((2, 4), "float32")
    np.savez(folder / "standalone.npz", x=x, expected=models.call(model, x))
    return {
        "id": "standalone",
        "name": "mlp",
        "how": "keras",
        "path": str(folder / "standalone.keras"),
        "arrays": str(folder / "standalone.npz"),
        "resumes": False,
    }


# Each starts a process, which takes long: by default only that of the next one.
BACKENDS = ["jax", "torch", "tensorflow"]
NEXT = BACKENDS[(BACKENDS.index(keras.backend.backend()) + 1) % 3]


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            backend, marks=[] if backend == NEXT else pytest.mark.nightly
        )
        for backend in BACKENDS
    ],
)
def test_without_the_package(backend, tmp_path):
    pytest.importorskip(backend)
    entries = [*write_all(tmp_path), standalone_entry(tmp_path)]
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.saving.reader"),
            *(tmp_path / "entries.json", tmp_path / "found.json"),
        ],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert "EtherDense" in found.pop("standalone")["error"]
    wrong = {
        key: result
        for key, result in found.items()
        if not (result.get("distance", 1) < 1e-4 and result["trainable"])
    }
    assert not wrong
    adapted = {
        key: result["adapted"]
        for key, result in found.items()
        if "adapted" in result
    }
    assert len(adapted) == 10
    wrong = {
        key: result
        for key, result in adapted.items()
        if not (result["distance"] < 1e-4 and result["bits"])
        or not result["loaded"] < 1e-4
    }
    assert not wrong
