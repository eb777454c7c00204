"""What `bank.model.export` writes, read by runtimes that know no Keras."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests import exporting
from tests import models
from tests.bank import banks
from tests.exports_test import skip_unless_installed

NAMES = ["a1", None, "a0", "a1"]
pytestmark = pytest.mark.filterwarnings("ignore")


def test_saved_model_without_keras(rng, tmp_path):
    """By its own signature: the inputs, and `adapter_id`."""
    skip_unless_installed("tf_saved_model")
    if keras.backend.backend() == "torch":
        pytest.skip("Keras on PyTorch exports no SavedModel")
    bank, _ = banks.bank_of("functional", "ether+")
    x = models.inputs_of("functional", rng, samples=4)
    batch = banks.with_ids(x, bank.ids(NAMES))
    expected = models.call(bank.model, batch)
    bank.model.export(tmp_path / "saved_model", verbose=False)
    np.savez(tmp_path / "inputs.npz", **batch)
    script = Path(__file__).parents[1] / "bare_tensorflow.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    found = np.load(tmp_path / "outputs.npy")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_onnx(rng, tmp_path):
    skip_unless_installed("onnx")
    bank, _ = banks.bank_of("mlp")
    x = models.inputs_of("mlp", rng, samples=4)
    batch = banks.with_ids(x, bank.ids(NAMES))
    expected = models.call(bank.model, batch)
    path = exporting.write(bank.model, batch, "onnx", tmp_path)
    np.testing.assert_allclose(
        exporting.read(path, "onnx", batch), expected, atol=1e-4
    )
