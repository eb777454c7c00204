"""Merged models of KerasHub, as `transformers` loads them."""

import numpy as np
import pytest

import keras_ether
from keras_ether.surgery import verbs
from tests.exported_models import EXPORTED
from tests.exported_models import keras_logits
from tests.exported_models import torch_logits
from tests.hub import tasks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What `transformers` and PyTorch warn of by themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
QUICK = ("GPT2", "Gemma")


def adapt(task):
    keras_ether.apply(
        task, method="ether+", targets="all-linear", rank_blocks=2, seed=0
    )
    rng = np.random.default_rng(1)
    for layer in verbs.adapted_layers(task).values():
        for vector in layer.ether.vectors.values():
            vector.assign(rng.normal(size=vector.shape))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.nightly])
        for name in EXPORTED
    ],
)
def test_same_logits_in_transformers(name, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    task = EXPORTED[name].task()
    x = {key: value[:1] for key, value in EXPORTED[name].inputs().items()}
    base = keras_logits(task, x)
    adapt(task)
    active = keras_logits(task, x)
    assert np.abs(active - base).max() > 1e-2
    with pytest.raises(ValueError, match=r"has an adapter.*merge\(model\)"):
        task.export_to_transformers(str(tmp_path / "active"))
    with pytest.raises(ValueError, match=r"has an adapter.*merge\(model\)"):
        task.backbone.export_to_transformers(str(tmp_path / "active"))
    assert not (tmp_path / "active").exists()

    keras_ether.merge(task)
    task.export_to_transformers(str(tmp_path / "merged"))
    loaded = EXPORTED[name].load(tmp_path / "merged")
    found = torch_logits(loaded, x)
    np.testing.assert_allclose(found, active, atol=1e-4)


def test_tokenizer_travels(tmp_path):
    transformers = pytest.importorskip("transformers")
    task, texts, _ = tasks.causal_lm()
    keras_ether.apply(task, rank_blocks=1)
    keras_ether.merge(task)
    task.export_to_transformers(str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = task.preprocessor.tokenizer(texts[0])
    found = tokenizer(texts[0])["input_ids"]
    assert found == np.array(expected).tolist()


def test_parts_that_were_merged_can_be_exported(tmp_path):
    task = EXPORTED["GPT2"].task()
    keras_ether.apply(task, rank_blocks=2)
    keras_ether.merge(task.backbone)
    task.backbone.export_to_transformers(str(tmp_path))
    assert (tmp_path / "model.safetensors").exists()
