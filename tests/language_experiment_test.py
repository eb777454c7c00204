"""The experiment of a language model, on a tiny one that is random."""

import importlib
import importlib.util
import json

import keras
import numpy as np
import pytest
from keras import ops

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import methods
from benchmarks.experiments import page
from benchmarks.experiments import store as store_lib
from keras_ether.adapters import kinds
from keras_ether.surgery.layer_tree import LayerTree

for package in ("keras_hub", "tensorflow_text"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*learning rate of")
LENGTH = 12
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
# Each letter is a token, and so is a space.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*SPECIAL, *LETTERS, "Ġ", "ĠĠ"]
TEXTS = ["aba", "a film", "ab ab ab ab ab ab", "good", "a bad film", "b"]


@pytest.fixture(scope="module")
def model():
    return importlib.import_module("benchmarks.experiments.language_model")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Stands for every preset; as SmolLM2 it has one table in both directions.

    Not from a folder: KerasHub 0.32 forgets that it is one table there.
    """
    import keras_hub

    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.Llama3Tokenizer(
        {token: index for index, token in enumerate(VOCABULARY)},
        merges=["Ġ Ġ"],
    )
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        tie_word_embeddings=True,
    )
    task = keras_hub.models.Llama3CausalLM(
        backbone=backbone,
        preprocessor=keras_hub.models.Llama3CausalLMPreprocessor(tokenizer),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keras_hub.models.CausalLM, "from_preset", lambda preset: task
        )
        yield task


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    lines = "\n".join(f"{text}\t0" for text in TEXTS)
    for part in ("train", "dev", "test"):
        (folder / f"{part}.tsv").write_text(lines)
    return folder


@pytest.fixture
def options(texts, tmp_path):
    return command.read_options(
        [
            *("language", "--preset", "tiny", "--data", str(texts)),
            *("--results", str(tmp_path), "--length", str(LENGTH)),
            *("--methods", "ether-learned", "lora-1", "--batch-size", "3"),
            *("--learning-rates", "1e-3", "1e-1", "--epochs", "3"),
            *("--seeds", "0", "--jobs", "1"),
        ]
    )


@pytest.mark.once
def test_an_experiment_of_its_own_defaults():
    options = command.read_options(["language"])
    assert (options.samples, options.length) == (192, 40)
    assert options.command == "python -m benchmarks.experiments language"
    options = command.read_options(["language", "--samples", "320"])
    assert options.command.endswith("language --samples 320")
    assert command.read_options(["robustness"]).samples == 320


def test_rows_hold_the_next_token_and_only_real_ends(options, model):
    rows = model.trainer(options).data["test"]
    end = VOCABULARY.index("<|end_of_text|>")
    cut = 0
    assert rows["targets"].shape == (len(TEXTS), LENGTH)
    for ids, mask, targets, weights in zip(
        *(
            rows[name]
            for name in ("token_ids", "padding_mask", "targets", "weights")
        ),
        strict=True,
    ):
        count = int(weights.sum())
        np.testing.assert_array_equal(ids[1:count], targets[: count - 1])
        assert mask[:count].all() and weights[:count].all()
        text = "".join(VOCABULARY[i] for i in targets[:count] if i != end)
        text = text.replace("Ġ", " ")
        whole = next(t for t in TEXTS if t.startswith(text) and text)
        assert (text == whole) == (end in targets[:count])
        cut += text != whole
    assert cut == 1


@pytest.mark.once
def test_the_loss_is_that_of_each_text_alone(options, model):
    trainer = model.trainer(options)
    task = trainer.base.build("base", 1, 0)
    task.compile(loss=model.loss(), weighted_metrics=None)
    rows = trainer.data["test"]
    losses = []
    for index, weights in enumerate(rows["weights"]):
        count = int(weights.sum())
        ids = rows["token_ids"][index : index + 1, :count]
        logits = task({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        logits = ops.convert_to_numpy(logits)[0].astype("float64")
        chosen = logits[np.arange(count), rows["targets"][index, :count]]
        losses += list(np.log(np.exp(logits).sum(-1)) - chosen)
    found = model.mean_loss(task, rows)
    assert len(losses) == rows["weights"].sum()
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("method", ["ether-learned", "lora-8"])
def test_all_linear_maps_adapt_and_nothing_else_trains(method, model):
    base = model.base(command.read_options(["language", "--preset", "tiny"]))
    linear = {
        path
        for path, layer in LayerTree(
            base.build("base", 1, 0).backbone
        ).layers.items()
        if kinds.is_linear(layer)
    }
    # Query, key, value, output; gate, intermediate, output.
    assert len(linear) == 2 * 7
    task = base.build(method, 4, 0)
    layers = LayerTree(task.backbone).layers
    trained = {id(weight) for weight in task.trainable_weights}
    owners = {
        path
        for path, layer in layers.items()
        if path in linear
        and any(id(weight) in trained for weight in layer.weights)
    }
    assert owners == linear
    names = {weight.name for weight in task.trainable_weights}
    assert (
        names
        == {
            "ether-learned": {"input_u", "input_strength"},
            "lora-8": {"lora_kernel_a", "lora_kernel_b"},
        }[method]
    )


@pytest.mark.once
def test_an_experiment_from_end_to_end(options, tmp_path, monkeypatch):
    lab_lib = importlib.import_module("benchmarks.experiments.lab")
    language = importlib.import_module("benchmarks.experiments.language")
    language.main(lab_lib.Lab(options))
    runs = store_lib.Store(tmp_path / "runs.jsonl").runs.values()
    assert {run["settings"]["task"] for run in runs} == {"language model"}
    losses = {}
    for run in runs:
        measured = run["measured"]
        key = run["settings"]["method"], run["settings"]["learning_rate"]
        losses[key] = measured["test_loss"]
        if key[0] != "base":
            assert len(measured["dev_by_epoch"]) == 2
            # Both parts hold the same texts here.
            assert measured["dev_loss"] == pytest.approx(measured["test_loss"])
            assert measured["trainable"] > 0
    assert len(losses) == 5
    base = losses["base", 0.0]
    for method in options.methods:
        assert losses[method, 1e-1] < min(losses[method, 1e-3], base)
    written = json.loads((tmp_path / "language.json").read_text())
    by_rate, at_best, by_epoch = written["tables"].values()
    assert [row["method"] for row in by_rate] == [
        "base",
        *(methods.METHODS[method].label for method in options.methods),
    ]
    assert [row["rate"] for row in at_best] == ["-", "0.1", "0.1"]
    assert at_best[1]["loss"] == losses["ether-learned", 1e-1]
    assert set(by_epoch[0]) >= {"before", "epoch 1", "epoch 3"}
    assert (tmp_path / "language.png").stat().st_size > 5000
    page_path = tmp_path / "page.md"
    page_path.write_text("<!-- language -->\n<!-- end -->\n")
    page.main(tmp_path, page_path)
    assert page_path.read_text().count("\n|--") == 3
    # All of it is on disk now.
    monkeypatch.setattr(store_lib.Store, "add", lambda *_: 1 / 0)
    language.main(lab_lib.Lab(options))


@pytest.mark.once
def test_a_loss_that_ran_away_is_said(options, tmp_path):
    lab_lib = importlib.import_module("benchmarks.experiments.lab")
    language = importlib.import_module("benchmarks.experiments.language")
    options.only_finished = True
    lab = lab_lib.Lab(options)
    for settings in lab.grid(options.methods):
        away = settings["learning_rate"] > 0.01
        loss = None if away else 3.0
        losses = {"dev_loss": loss, "test_loss": loss, "dev_by_epoch": [4.0]}
        lab.store.add(settings, losses | {"trainable": 9}, {})
    with pytest.raises(SystemExit, match="base was not tested"):
        language.main(lab)
    options.methods = ["ether", "bitfit"]
    with pytest.raises(SystemExit, match="bitfit would train nothing"):
        language.main(lab)
    options.methods = ["ether-learned", "lora-1"]
    tested = {"dev_loss": 3.5, "test_loss": 3.4}
    lab.store.add(lab.settings("base"), tested, {})
    language.main(lab)
    written = json.loads((tmp_path / "language.json").read_text())
    by_rate, at_best, _ = written["tables"].values()
    assert by_rate[1]["0.1"] == "ran away"
    assert at_best[1]["rate"] == "0.001"
    options.learning_rates = [0.1]
    with pytest.raises(SystemExit, match="Every loss ran away"):
        language.main(lab)
