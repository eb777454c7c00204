"""The service: every request is answered by its own adapter."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ether

FOLDER = Path(__file__).parents[2] / "examples" / "serving"
SIZE = {"layers": 1, "width": 8, "heads": 2}
pytestmark = pytest.mark.once


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("answers")
    yield module
    del sys.modules["answers"]


@pytest.fixture
def folder(answers, tmp_path, rng):
    model = answers.adapted_model(**SIZE)
    for name in ("ann", "anne", "bob"):
        for variable in model.trainable_variables:
            variable.assign(rng.standard_normal(variable.shape))
        keras_ether.save_adapter(model, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*learning rate")
def test_more_adapters_than_fit_are_loaded_when_asked_for(answers, folder):
    model = answers.adapted_model(**SIZE)
    service = answers.Answers(model, folder, capacity=2, batch=2)
    tokens = [[3, 4, 5], [6]]
    for names in (["ann", "bob"], ["anne", None], ["bob", "ann"]):
        found = service(names, tokens)
        for name, row, ids in zip(names, found, tokens, strict=True):
            alone = answers.base_model(**SIZE)
            if name is not None:
                file = folder / f"{name}.safetensors"
                alone = keras_ether.load_adapter(
                    answers.adapted_model(**SIZE), file
                )
            expected = alone.predict(answers.inputs_of([ids]), verbose=0)[0]
            np.testing.assert_allclose(row, expected, atol=1e-5)
    assert len(service.bank.names) == 2


def test_batches_are_filled_up_to_few_sizes(answers, folder, monkeypatch):
    service = answers.Answers(
        answers.adapted_model(**SIZE), folder, capacity=5, batch=5
    )
    predict, seen = service.bank.model.predict_on_batch, []

    def watched(x):
        seen.append(len(x["adapter_id"]))
        return predict(x)

    monkeypatch.setattr(service.bank.model, "predict_on_batch", watched)
    for size in range(1, 6):
        assert len(service([None] * size, [[1]] * size)) == size
    assert seen == [1, 2, 4, 4, 5]


def test_names_near_an_unknown_one(answers, folder):
    service = answers.Answers(
        answers.adapted_model(**SIZE), folder, capacity=2, batch=2
    )
    with pytest.raises(answers.UnknownAdapterError) as caught:
        service.check("annn")
    assert set(caught.value.args[0]) == {"ann", "anne"}


def test_a_damaged_file_fails_its_own_requests_only(answers, folder):
    (folder / "ann.safetensors").write_bytes(b"nothing")
    service = answers.Answers(
        answers.adapted_model(**SIZE), folder, capacity=2, batch=2
    )
    error, logits = service(["ann", "bob"], [[1], [2]])
    assert isinstance(error, ValueError)
    assert np.isfinite(logits).all()


@pytest.mark.nightly
def test_load():
    """Over HTTP: errors, batches, and every answer checked by the script."""
    pytest.importorskip("ray")
    options = "--requests 40 --adapters 6 --clients 8 --capacity 32 --merges 2"
    size = "--layers 1 --width 8 --heads 2"
    done = subprocess.run(
        [sys.executable, FOLDER / "load.py", *options.split(), *size.split()],
        env=os.environ
        | {"PYTHONPATH": str(FOLDER.parents[1])}
        | {"KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "all 40 answers are those of their adapters" in done.stdout
