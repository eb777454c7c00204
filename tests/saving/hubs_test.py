import importlib
import inspect
import os
import shutil
import sys
import types

import numpy as np
import pytest

import keras_ether
from keras_ether.saving import hubs
from tests import checks
from tests import models
from tests import tuned

pytestmark = pytest.mark.once


CALLED = {
    "huggingface_hub": ("create_repo", "upload_folder", "hf_hub_download"),
    "kagglehub": ("model_upload", "model_download"),
}


class StandIn(types.ModuleType):
    """A library whose hub is a folder.

    What it is called with must be what the real one takes, if that is there.
    """

    def __init__(self, name, folder):
        super().__init__(name)
        self.folder = folder
        self.asked = []
        self.signatures = {}
        try:
            real = importlib.import_module(name)
        except ImportError:
            return
        for function in CALLED[name]:
            signature = inspect.signature(getattr(real, function))
            self.signatures[function] = signature

    def _called(self, name, *args, **kwargs):
        self.asked.append(name)
        if name in self.signatures:
            self.signatures[name].bind(*args, **kwargs)

    def create_repo(self, repo_id, **kwargs):
        self._called("create_repo", repo_id, **kwargs)
        os.makedirs(self.folder / repo_id, **kwargs)

    def upload_folder(self, **kwargs):
        self._called("upload_folder", **kwargs)
        place = self.folder / kwargs["repo_id"]
        shutil.copytree(kwargs["folder_path"], place, dirs_exist_ok=True)

    def model_upload(self, handle, folder):
        self._called("model_upload", handle, folder)
        shutil.copytree(folder, self.folder / handle)

    def hf_hub_download(self, repo_id, filename):
        self._called("hf_hub_download", repo_id, filename)
        return self._found(self.folder / repo_id / filename)

    def model_download(self, handle, path):
        self._called("model_download", handle, path=path)
        return self._found(self.folder / handle / path)

    def _found(self, path):
        if not path.exists():
            raise ConnectionError("no network")
        return str(path)


@pytest.fixture
def standing_in(monkeypatch, tmp_path):
    found = {}
    for name in CALLED:
        found[name] = StandIn(name, tmp_path / name)
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


PLACES = {
    "hf://me/reviews": ("me/reviews", hubs.FILE),
    "hf://me/reviews/b.safetensors": ("me/reviews", "b.safetensors"),
    "kaggle://me/reviews/keras/ether": ("me/reviews/keras/ether", hubs.FILE),
}


@pytest.mark.parametrize("place", PLACES)
def test_there_and_back(place, standing_in):
    model = tuned.adapted("mlp")
    x = models.inputs_of("mlp", np.random.default_rng(0))
    keras_ether.save_adapter(model, place, metadata={"task": "reviews"})
    header = keras_ether.read_adapter_header(place)
    assert header["metadata"] == {"task": "reviews"}
    other = keras_ether.load_adapter(tuned.base("mlp"), place)
    np.testing.assert_array_equal(models.call(other, x), models.call(model, x))
    keras_ether.blend(tuned.base("mlp"), {place: 1.0})

    name = "kagglehub" if "kaggle" in place else "huggingface_hub"
    repository, file = PLACES[place]
    folder = standing_in[name].folder / repository
    assert sorted(os.listdir(folder)) == sorted(["README.md", file])
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: keras\n")
    assert f'load_adapter(model, "{place}")' in card
    assert "| ether | 2 | input | 2 |" in card
    count = keras_ether.summary(model, print_fn=str).trainable
    assert f"{count:,} trained parameters" in card
    assert "the head" in card


def test_other_files_stay_beside_it(standing_in):
    for seed, name in enumerate("ab"):
        keras_ether.save_adapter(
            tuned.adapted("mlp", seed=seed), f"hf://me/r/{name}.safetensors"
        )
    folder = standing_in["huggingface_hub"].folder / "me/r"
    assert {"a.safetensors", "b.safetensors"} <= set(os.listdir(folder))


@pytest.mark.parametrize("place", PLACES)
def test_without_a_network(place, standing_in):
    model = tuned.base("mlp")
    before = models.values(model.variables)
    with pytest.raises(OSError, match=rf"'{place}' can't be read.*no network"):
        keras_ether.load_adapter(model, place)
    checks.equal(before, model.variables)
    for library in standing_in.values():

        def refuse(*args, **kwargs):
            raise ConnectionError("no network")

        library.create_repo = library.model_upload = refuse
    with pytest.raises(OSError, match=rf"'{place}' can't be written.*network"):
        keras_ether.save_adapter(tuned.adapted("mlp"), place)


@pytest.mark.parametrize("place", PLACES)
def test_without_the_library(place, monkeypatch):
    name = "kagglehub" if "kaggle" in place else "huggingface_hub"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        keras_ether.save_adapter(tuned.adapted("mlp"), place)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        keras_ether.load_adapter(tuned.base("mlp"), place)


@pytest.mark.parametrize(
    "place",
    ["hf://", "hf://me/r/x/y", "hf://me//r", "kaggle://me/r", "kaggle://"],
)
def test_places_of_no_hub(place, standing_in):
    with pytest.raises(ValueError, match=r"'hf://user/repository' or 'kaggle"):
        keras_ether.load_adapter(tuned.base("mlp"), place)
    with pytest.raises(ValueError, match=r"'hf://user/repository' or 'kaggle"):
        keras_ether.save_adapter(tuned.adapted("mlp"), place)
    assert not any(library.asked for library in standing_in.values())
