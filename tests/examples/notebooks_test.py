"""The notebooks: paired with scripts, small, and run from top to bottom."""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

PACKAGES = (
    "ipykernel",
    "jupytext",
    "keras_hub",
    "nbclient",
    "sklearn",
)
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in (EXAMPLES / "notebooks").glob("*.py"))

missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@pytest.fixture(scope="module")
def building():
    spec = importlib.util.spec_from_file_location(
        "build_notebooks", EXAMPLES / "build_notebooks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return json.loads((EXAMPLES / f"{name}.ipynb").read_text("utf-8"))


def cells_with(notebook, kind):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.once
def test_every_notebook_has_a_script():
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == NAMES
    assert len(NAMES) == 6


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_text_and_code_are_those_of_the_script(building, name):
    script = building.read_script(EXAMPLES / "notebooks" / f"{name}.py")
    paired = [
        (cell.id, cell.cell_type, cell.source, cell.metadata.get("tags"))
        for cell in script.cells
    ]
    written = [
        (
            cell["id"],
            cell["cell_type"],
            "".join(cell["source"]),
            cell["metadata"].get("tags"),
        )
        for cell in read(name)["cells"]
    ]
    assert written == paired


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_structure(name):
    notebook = read(name)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    first, *_ = notebook["cells"]
    assert first["cell_type"] == "markdown"
    assert first["source"][0].startswith("# ")

    code = cells_with(notebook, "code")
    setup = "".join(code[0]["source"])
    assert '"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": KERAS_ETHER' in setup
    assert "*([] if WHEELS else [KERAS_ETHER])" in setup
    assert 'os.environ.setdefault("KERAS_BACKEND", "jax")' in setup
    assert "import keras\n" not in setup
    for requirement in ("keras>=3.15", "keras-hub>=0.32"):
        assert f'install("{requirement}")' in setup
    tags = [cell["metadata"].get("tags") for cell in code]
    assert tags[1] == ["parameters"]
    assert tags.count(["parameters"]) == 1
    # One picture is shown first.
    if "attachment:cover.png" in "".join(first["source"]):
        assert tags.count(["cover"]) == 1
        assert first["attachments"]["cover.png"]["image/png"]

    assert len(cells_with(notebook, "markdown")) >= len(code) / 2


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_was_run_and_shows_little(name):
    code = cells_with(read(name), "code")
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert all(output["output_type"] != "error" for output in outputs)
    pictures = [
        output["data"]["image/png"]
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    # Base64 takes a third more.
    assert max(map(len, pictures)) < 100_000 * 4 / 3
    text = json.dumps([o for o in outputs if "image/png" not in str(o)])
    assert len(text) < 8_000


def run(building, name, folder, parameters, wanted):
    """Runs a notebook with other parameters; returns variables of its end."""
    import nbformat

    notebook = building.read_script(EXAMPLES / "notebooks" / f"{name}.py")
    index = next(
        index
        for index, cell in enumerate(notebook.cells)
        if cell.metadata.get("tags")
    )
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    notebook.cells.insert(
        index + 1, nbformat.v4.new_code_cell("\n".join(lines))
    )
    names = ", ".join(f"{variable!r}: {variable}" for variable in wanted)
    notebook.cells.append(
        nbformat.v4.new_code_cell(
            "import json\n"
            "def as_list(value):\n"
            "    return np.asarray(value).tolist()\n"
            f"print(json.dumps({{{names}}}, default=as_list))"
        )
    )
    building.execute(notebook, folder, keras.backend.backend())
    printed = notebook.cells[-1].outputs[-1].text
    return json.loads(printed)


def only_on_jax():
    if keras.backend.backend() != "jax":
        pytest.skip("one backend will do")


def nightly_but_on_torch(test):
    """By default where nothing is compiled."""
    on_torch = keras.backend.backend() == "torch"
    return test if on_torch else pytest.mark.nightly(test)


def shown_by(name):
    """What a notebook prints, as it was built."""
    return "".join(
        "".join(output["text"])
        for cell in cells_with(read(name), "code")
        for output in cell["outputs"]
        if output["output_type"] == "stream"
    )


def test_classify_text_shows_what_was_learned():
    shown = shown_by("classify_text")
    (chance,) = re.findall(r"([\d.]+)% right if the answer is always", shown)
    found = re.findall(r"seed \d, ETHER\+: ([\d.]+)% right", shown)
    assert len(found) >= 2
    assert all(float(share) > float(chance) + 5 for share in found)
    for kind in ("From the adapter file", "Merged, saved, loaded"):
        (difference,) = re.findall(rf"{kind}: (\S+)", shown)
        assert float(difference) < 1e-4


@nightly_but_on_torch
def test_classify_text(building, tmp_path):
    found = run(
        building,
        "classify_text",
        tmp_path,
        {
            **{"SAMPLES": 32, "TEST_SAMPLES": 32, "SEQUENCE_LENGTH": 16},
            **{"SEEDS": 1, "EPOCHS": 2},
        },
        [
            *("runs['parameters']", "runs['training loss']", "logits"),
            *("reloaded", "merged", "len(submission)"),
        ],
    )
    head, ether, lora = found["runs['parameters']"]
    # Two vectors and four strengths for query and value of six layers.
    assert (head, ether) == (0, 12 * (2 * 384 + 4))
    assert lora > 10 * ether
    assert np.isfinite(found["runs['training loss']"]).all()
    np.testing.assert_allclose(found["reloaded"], found["logits"], atol=1e-5)
    np.testing.assert_allclose(found["merged"], found["logits"], atol=1e-4)
    assert found["len(submission)"] == 32
    assert (tmp_path / "submission.csv").exists()
    assert (tmp_path / "reviews.keras").exists()


def test_serve_many_adapters_shows_what_was_learned():
    shown = shown_by("serve_many_adapters")
    alone = re.findall(r"(\w+): ([\d.]+)% right \(chance (\d+)%", shown)
    mixed = dict(re.findall(r"(\w+): ([\d.]+)% right in mixed", shown))
    assert [task for task, *_ in alone] == ["reviews", "tweets", "commands"]
    for task, share, chance in alone:
        assert float(share) > float(chance) + 8
        assert abs(float(mixed[task]) - float(share)) < 1


@pytest.mark.nightly
def test_serve_many_adapters(building, tmp_path):
    only_on_jax()
    found = run(
        building,
        "serve_many_adapters",
        tmp_path,
        {
            **{"SAMPLES": 32, "TEST_SAMPLES": 32, "EPOCHS": 1},
            **{"CAPACITY": 16, "USERS": 6},
        },
        ["alone", "logits", "answered", "expected", "rates"],
    )
    for place, logits in enumerate(found["alone"].values()):
        mixed = np.array(found["logits"])[place::3]
        np.testing.assert_allclose(mixed, logits, atol=1e-3)
    np.testing.assert_allclose(found["answered"], found["expected"], atol=1e-3)
    assert min(found["rates"].values()) > 0


def test_instruction_tuning_shows_what_was_learned():
    shown = shown_by("instruction_tuning")
    right = {
        way: float(share)
        for way, share in re.findall(r"(.+): .*?([\d.]+)% right", shown)
    }
    assert right["as it is"] == 0
    assert right["ETHER+"] > right["seven examples in the prompt"]
    assert "Disabled, it answers as before: True" in shown


@pytest.mark.nightly
def test_instruction_tuning(building, tmp_path):
    only_on_jax()
    found = run(
        building,
        "instruction_tuning",
        tmp_path,
        {"SAMPLES": 7, "TEST_SAMPLES": 7, "EPOCHS": 2},
        ["losses", "trained", "off", "answers['as it is']", "same"],
    )
    # Two vectors and four strengths for query and value of 18 layers.
    assert found["trained"]["ETHER+"] == 36 * (2 * 640 + 4)
    for curve in found["losses"].values():
        assert curve[-1] < curve[0]
    assert found["off"] == found["answers['as it is']"]
    assert found["same"] > 0.8


def test_adapt_vision_transformer_shows_what_was_learned():
    shown = shown_by("adapt_vision_transformer")
    assert len(re.findall(r"seed \d, ETHER\+: ", shown)) >= 2
    (difference,) = re.findall(r"Largest difference of an output: (\S+)", shown)
    assert float(difference) < 1e-3


@pytest.mark.nightly
@pytest.mark.parametrize("source", ["cifar10", "folder"])
def test_adapt_vision_transformer(building, tmp_path, source):
    only_on_jax()
    parameters = {"EPOCHS": 2, "SEEDS": 1, "SAMPLES": 40, "TEST_SAMPLES": 40}
    if source == "folder":
        parameters |= {"IMAGES": str(tmp_path / "images"), "SAMPLES": 30}
        write_images(tmp_path / "images")
    found = run(
        building,
        "adapt_vision_transformer",
        tmp_path,
        parameters,
        ["runs['parameters']", "names", "logits", "merged", "found"],
    )
    assert len(found["names"]) == 10
    # Two vectors and four strengths for query and value of twelve layers.
    ether, lora = found["runs['parameters']"]
    assert ether == 24 * (2 * 384 + 4)
    assert lora > 10 * ether
    np.testing.assert_allclose(found["merged"], found["logits"], atol=1e-3)
    assert set(found["found"]) == {"new head", "ETHER+"}


def write_images(folder):
    """A folder of pictures as one attaches it: those of handwritten digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        chosen = digits.images[digits.target == digit][:8]
        for number, image in enumerate(chosen):
            keras.utils.save_img(
                folder / str(digit) / f"{number}.png",
                image[..., None],
                data_format="channels_last",
            )


@pytest.mark.nightly
def test_personalise_stable_diffusion_3(building, tmp_path):
    only_on_jax()
    found = run(
        building,
        "personalise_stable_diffusion_3",
        tmp_path,
        {"STEPS": 100, "PRETRAINING_STEPS": 100, "GENERATION_STEPS": 2},
        [
            *("loss_before", "loss_after", "trained", "difference_disabled"),
            *("difference_merged", "picture_before", "picture_after"),
        ],
    )
    assert found["loss_after"] < found["loss_before"]
    assert np.shape(found["picture_after"]) == (64, 64, 3)
    assert found["difference_disabled"] <= 1
    assert found["difference_merged"] <= 1
    assert (tmp_path / "sks_flower.ether.safetensors").exists()


def test_how_many_parameters_shows_what_was_learned():
    shown = shown_by("how_many_parameters")
    (chance,) = re.findall(r"([\d.]+)% right if the answer is always", shown)
    (found,) = re.findall(r"default +[\d,]+ +\S+ +([\d.]+)%", shown)
    assert float(found) > float(chance) + 10


@pytest.mark.nightly
def test_how_many_parameters(building, tmp_path):
    found = run(
        building,
        "how_many_parameters",
        tmp_path,
        {"SAMPLES": 64, "TEST_SAMPLES": 64, "SEEDS": 1, "SWEEP": {}},
        [
            "summary['parameters'].to_dict()",
            "runs['accuracy']",
            "losses",
        ],
    )
    # Six layers. LoRA takes a kernel of (384, 12, 32) for one of 384 * 12
    # inputs, and its layers' biases train as well.
    inputs = 6 * (5 * 384 + 1536)
    biases = 6 * (4 * 384 + 1536 + 384)
    assert found["summary['parameters'].to_dict()"] == {
        "head only": 0,
        "ETHER": inputs,
        "ETHER+": 4 * inputs,
        "default": 2 * inputs + 36 * 4,
        "LoRA r=8": biases + 8 * 6 * (3 * (384 * 12 + 32) + 768 + 2 * 1920),
        "full": 22_713_216,
    }
    # Strengths from -0.5 to 1.5.
    assert {key: len(curve) for key, curve in found["losses"].items()} == {
        "ETHER": 9,
        "default": 9,
    }
    assert min(found["runs['accuracy']"]) > 0.3
    assert (tmp_path / "reviews.ether.safetensors").exists()
