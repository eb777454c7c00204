"""The page of the paper's settings does what it says."""

import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ether
from tests import models

pytestmark = pytest.mark.once
PAGE = Path(__file__).parents[2] / "examples" / "recipes" / "SETTINGS.md"


def blocks():
    return re.findall("```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


def test_code_runs_as_it_stands(rng):
    model, rank_blocks = models.bert(), 4
    keras_ether.apply(
        model, rank_blocks, targets="all-linear", seed=0, method="ether"
    )
    before = {v.path: models.values([v])[0] for v in model.trainable_variables}
    names = {"keras": keras, "model": model, "math": math, "re": re}
    for code in blocks():
        exec(code, names | {"rank_blocks": rank_blocks})
    assert model.optimizer.beta_2 == 0.95
    shorter = set()
    for variable in model.trainable_variables:
        value, was = models.values([variable])[0], before[variable.path]
        if not np.array_equal(value, was):
            np.testing.assert_allclose(2.0 * value, was, rtol=1e-6)
            shorter.add(variable.path.split("/")[-3])
    assert shorter == {"query", "key", "value"}
    x = models.inputs_of("bert", rng)
    model.train_on_batch(x, np.zeros(len(next(iter(x.values()))), "int32"))


def test_arguments_of_the_table_are_right():
    rows = re.findall(r"^\| .*? \| (.*) \|$", PAGE.read_text("utf-8"), re.M)
    found = [a for row in rows for a in re.findall(r"`(\w+=[^`]*)`", row)]
    assert len(found) >= 9
    for text in found:
        arguments = eval(f"dict({text})", {"n": 2, "dict": dict})
        keras_ether.plan(models.bert(), print_fn=str, **arguments)
