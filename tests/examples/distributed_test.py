"""Training on several devices gives the losses of one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]


def run(script, backend, *options):
    """What a script prints: all of it, and its losses by epoch."""
    if keras.backend.backend() != backend:
        pytest.skip(f"a script for {backend}")
    done = subprocess.run(
        [sys.executable, f"examples/distributed/{script}.py", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ray" in script or "Warning:" not in done.stderr
    rows = re.findall(r"^ +\d+ +([\d.]+) +([\d.]+)$", done.stdout, re.MULTILINE)
    return done.stdout, [tuple(map(float, row)) for row in rows]


@pytest.mark.parametrize(
    ("script", "backend", "devices"),
    [
        ("data_parallel_jax", "jax", "8 devices"),
        ("model_parallel_jax", "jax", "8 devices"),
        ("mirrored_strategy_tensorflow", "tensorflow", "2 devices"),
        ("ddp_torch", "torch", "2 processes"),
        pytest.param(
            *("ray_train_jax", "jax", "2 workers"), marks=pytest.mark.nightly
        ),
    ],
)
def test_losses_are_those_of_one_device(script, backend, devices):
    if script.startswith("ray"):
        pytest.importorskip("ray.train")
    printed, losses = run(script, backend)
    sentence = re.search(rf"The losses on {devices} .* is (\S+)\.$", printed)
    assert float(sentence[1]) <= 1e-4
    assert len(losses) >= 3
    for one, several in losses:
        assert abs(one - several) <= 1e-4
    assert losses[-1][1] < losses[0][1] - 0.01
    if script == "model_parallel_jax":
        assert "query/kernel: shape (4, 32, 8), on each of 8" in printed
        assert printed.count("8 device(s) (1, 16, 8)") == 2
        assert "input_u: shape (4, 8), on each of 8 device(s) (1, 8)" in printed
