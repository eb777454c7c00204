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


def served(answers, folder, capacity=2, batch=2):
    model = answers.adapted_model(**SIZE)
    return answers.Answers(model, folder, capacity=capacity, batch=batch)


@pytest.mark.filterwarnings("ignore:.*learning rate")
def test_more_adapters_than_fit_are_loaded_when_asked_for(answers, folder):
    service = served(answers, folder)
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
    service = served(answers, folder, capacity=5, batch=5)
    predict, seen = service.bank.predict, []

    def watched(x, names, **kwargs):
        seen.append(len(names))
        return predict(x, names, **kwargs)

    monkeypatch.setattr(service.bank, "predict", watched)
    for size in range(1, 6):
        assert len(service([None] * size, [[1]] * size)) == size
    assert seen == [1, 2, 4, 4, 5]


def test_names_near_an_unknown_one(answers, folder):
    service = served(answers, folder)
    with pytest.raises(answers.UnknownAdapterError) as caught:
        service.check("annn")
    assert set(caught.value.args[0]) == {"ann", "anne"}


def test_a_damaged_file_fails_its_own_requests_only(answers, folder):
    (folder / "ann.safetensors").write_bytes(b"nothing")
    service = served(answers, folder)
    error, logits = service(["ann", "bob"], [[1], [2]])
    assert isinstance(error, answers.DamagedAdapterError)
    assert str(folder) not in str(error)
    assert np.isfinite(logits).all()


def test_files_are_followed(answers, folder):
    service = served(answers, folder)
    first, other = service(["ann", "bob"], [[1], [1]])
    assert service.counts == {"hits": 0, "loads": 2, "evictions": 0}
    (folder / "bob.safetensors").replace(folder / "ann.safetensors")
    found, gone = service(["ann", "bob"], [[1], [1]])
    np.testing.assert_allclose(found, other, atol=1e-6)
    assert not np.allclose(found, first)
    assert isinstance(gone, answers.UnknownAdapterError)
    assert service.bank.names == ["ann"]
    (folder / "ann.safetensors").write_bytes(b"nothing")
    (damaged,) = service(["ann"], [[1]])
    assert isinstance(damaged, answers.DamagedAdapterError)
    assert service.bank.names == []


def test_names_lead_nowhere_else(answers, folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    secret = elsewhere / "secret.safetensors"
    secret.write_bytes((folder / "ann.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(secret)
    (folder / "inner").mkdir()
    (folder / "inner" / "ann.safetensors").write_bytes(secret.read_bytes())
    service = served(answers, folder)
    for name in (
        f"../{elsewhere.name}/secret",
        str(elsewhere / "secret"),
        str(folder / "ann"),
        "link",
        "inner/ann",
        "ann\n",
        "",
        3,
    ):
        with pytest.raises(answers.UnknownAdapterError):
            service.check(name)
        (error,) = service([name], [[1]])
        assert isinstance(error, answers.UnknownAdapterError), name
    assert not service.bank.names


def test_more_adapters_than_rows_in_one_batch(answers, folder):
    service = served(answers, folder, capacity=1, batch=3)
    found = service(["ann", "bob", None], [[1], [1], [1]])
    assert np.isfinite(found[0]).all()
    assert isinstance(found[1], answers.BusyError)
    assert np.isfinite(found[2]).all()
    (later,) = service(["bob"], [[1]])
    assert np.isfinite(later).all()
    assert service.counts["evictions"] == 1


@pytest.mark.nightly
def test_load():
    """Over HTTP: errors, batches, and every answer checked by the script."""
    pytest.importorskip("ray")
    options = (
        "--requests 40 --adapters 6 --clients 8 --capacity 32 --merges 2 "
        "--overload 5"
    )
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
