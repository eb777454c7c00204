"""The code of pages that any small model can run, and their links."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ether
from tests import models

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for folder in ("examples", "benchmarks")
    for page in sorted((ROOT / folder).rglob("*.md"))
]
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def make_model():
    return keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(16, "relu", name="hidden"),
            keras.layers.Dense(2, name="classifier"),
        ]
    )


@pytest.mark.once
@pytest.mark.parametrize("name", ["FROM_PEFT", "CHOOSING_BLOCKS"])
def test_code_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, base = make_model(), make_model()
    base.set_weights(model.get_weights())
    text = (ROOT / "examples" / f"{name}.md").read_text("utf-8")
    names = {
        "model": model,
        "base": base,
        "x": np.ones((8, 16), "float32"),
        "y": np.ones((8, 2), "float32"),
    }
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for block in blocks:
        exec(block, names)
    if name == "FROM_PEFT":
        found = base.predict(names["x"], verbose=0)
        expected = model.predict(names["x"], verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.once
# KerasHub's `fit` makes a dataset of arrays.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_code_of_a_head_of_many_classes_runs(rng):
    text = (ROOT / "examples" / "FINE_TUNING.md").read_text("utf-8")
    section = text.partition("### A head of many classes\n")[2]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    task = models.bert()
    names = {
        "keras": keras,
        "keras_ether": keras_ether,
        "task": task,
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "x": models.inputs_of("bert", rng),
        "y": np.arange(8) % 4,
    }
    before = task.get_layer("logits").get_weights()
    exec(blocks[0], names)
    after = task.get_layer("logits").get_weights()
    assert not np.array_equal(before[0], after[0])
    report = keras_ether.summary(task, print_fn=str)
    assert report.rows
    trained = sum(int(np.prod(w.shape)) for w in task.trainable_weights)
    assert trained == report.trainable + sum(w.size for w in after)
    exec(blocks[1], names)
    task.fit(names["x"], names["y"], verbose=0)


def anchors(page):
    """The anchors of headings, as GitHub makes them."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S
    )
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        yield plain.replace(" ", "-")


@pytest.mark.once
@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in list(anchors(target)), link
