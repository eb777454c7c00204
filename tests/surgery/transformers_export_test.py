"""Merged models of KerasHub, as `transformers` loads them."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from keras_ether.surgery import verbs
from tests.hub import tasks
from tests.hub.causal import DECODER
from tests.hub.causal import GROUPED
from tests.hub.causal import HEADS
from tests.hub.causal import POSITIONS
from tests.hub.entry import randomize
from tests.hub.entry import tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What `transformers` and PyTorch warn of by themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WIDE = DECODER | GROUPED | {"hidden_dim": 16, "intermediate_dim": 32}
CONFIGS = {
    "GPT2": DECODER | HEADS | POSITIONS,
    # KerasHub exports the first of Gemma's keys and values only.
    "Gemma": WIDE | {"head_dim": 4, "num_key_value_heads": 1},
    "Llama3": WIDE,
    "Mistral": WIDE | {"sliding_window": 4},
    "Qwen": WIDE,
}


def language_model(name):
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**CONFIGS[name])
    task = getattr(keras_hub.models, f"{name}CausalLM")(
        backbone=backbone, preprocessor=None
    )
    return randomize(task)


def adapt(task):
    keras_ether.apply(
        task, method="ether+", targets="all-linear", rank_blocks=2, seed=0
    )
    rng = np.random.default_rng(1)
    for layer in verbs.adapted_layers(task).values():
        for vector in layer.ether.vectors.values():
            vector.assign(rng.normal(size=vector.shape))


def logits(task, x):
    outputs = task(x, training=False)
    return np.array(keras.ops.convert_to_numpy(outputs))


@pytest.mark.parametrize(
    "name",
    [
        "GPT2",
        "Gemma",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("Llama3", "Mistral", "Qwen")
        ),
    ],
)
def test_same_logits_in_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    task = language_model(name)
    x = {key: value[:1] for key, value in tokens().items()}
    base = logits(task, x)
    adapt(task)
    active = logits(task, x)
    assert np.abs(active - base).max() > 1e-2
    with pytest.raises(ValueError, match=r"has an adapter.*merge\(model\)"):
        task.export_to_transformers(str(tmp_path / "active"))
    with pytest.raises(ValueError, match=r"has an adapter.*merge\(model\)"):
        task.backbone.export_to_transformers(str(tmp_path / "active"))
    assert not (tmp_path / "active").exists()

    keras_ether.merge(task)
    task.export_to_transformers(str(tmp_path / "merged"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    ids = torch.tensor(x["token_ids"], dtype=torch.long)
    with torch.no_grad():
        found = loaded(ids).logits.numpy()
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


@pytest.mark.filterwarnings("ignore:Model .* is part of another")
def test_parts_that_were_merged_can_be_exported(tmp_path):
    task = language_model("GPT2")
    keras_ether.apply(task, rank_blocks=2)
    keras_ether.merge(task.backbone)
    task.backbone.export_to_transformers(str(tmp_path))
    assert (tmp_path / "model.safetensors").exists()
