"""What users of PEFT would pass to `apply` and `plan`."""

import inspect
import pathlib

import pytest

import keras_ether
from keras_ether.surgery import peft_names
from tests import models

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("verb", [keras_ether.apply, keras_ether.plan])
@pytest.mark.parametrize("name", peft_names.NAMES)
def test_an_argument_of_peft_is_answered_by_the_name_here(verb, name):
    model = models.ALL["mlp"]()
    flags = [v.trainable for v in model.variables]
    with pytest.raises(TypeError) as error:
        verb(model, **{name: 8})
    assert f"`{verb.__name__}` has no argument '{name}'" in str(error.value)
    assert f"Received: {name}=8" in str(error.value)
    assert [v.trainable for v in model.variables] == flags


def test_what_is_named_instead_are_arguments():
    known = inspect.signature(keras_ether.apply).parameters
    for text in peft_names.NAMES.values():
        named = text.split("`")[1].split("=")[0]
        assert named in known


def test_the_page_exists_and_has_every_name():
    page = (ROOT / peft_names.PAGE).read_text("utf-8")
    for name in ("r", "lora_alpha", "target_modules", "modules_to_save"):
        assert f"`{name}" in page


def test_an_unknown_argument_is_python_s_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        keras_ether.apply(models.ALL["mlp"](), size=8)
