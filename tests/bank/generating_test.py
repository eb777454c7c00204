"""Generation, each prompt with its own adapter."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_ether
from tests import models
from tests import tuned
from tests.bank import banks

NAMES = ["a0", None, "a1", "a0"]
pytestmark = pytest.mark.filterwarnings("ignore:.*learning rate of 2e-05")


class Silent(keras_hub.models.GPT2CausalLM):
    """Returns `None` for its images, as Gemma 3 does for texts alone."""

    def generate_step(self, *args, **kwargs):
        return {**super().generate_step(*args, **kwargs), "images": None}

    def _normalize_generate_outputs(self, outputs, is_scalar):
        texts = [{k: v for k, v in y.items() if v is not None} for y in outputs]
        return super()._normalize_generate_outputs(texts, is_scalar)


def task(seed, sampler, task_class=keras_hub.models.GPT2CausalLM):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=10,
        name="backbone",
    )
    model = task_class(backbone, preprocessor=None)
    tuned.move(model.trainable_weights, 0)
    keras_ether.apply(
        model,
        targets="all",
        exclude=["position_embedding"],
        rank_blocks=2,
        method="ether+",
    )
    tuned.move(model.trainable_weights, seed)
    model.compile(sampler=sampler)
    return model


def prompts(rng, count=4, length=8, given=3):
    mask = np.tile(np.arange(length) < given, (count, 1)).astype("int32")
    tokens = rng.integers(1, 40, (count, length)).astype("int32") * mask
    return {"token_ids": tokens, "padding_mask": mask}


@pytest.mark.parametrize(
    "beams", [None, pytest.param(2, marks=pytest.mark.nightly)]
)
def test_tokens_are_those_of_each_adapter_alone(rng, beams):
    sampler = "greedy"
    if beams:
        sampler = keras_hub.samplers.BeamSampler(num_beams=beams)

    def make(seed):
        return task(seed, sampler)

    bank, alone = banks.of(make)
    base = banks.base_of(make)
    x = prompts(rng)

    def answer(model):
        return model.generate(x, stop_token_ids=None)["token_ids"]

    # Others in the same places, by the same compiled loop.
    for names in (NAMES, NAMES[::-1]):
        found = bank.generate(x, names, stop_token_ids=None)["token_ids"]
        expected = banks.expected(names, alone, base, answer)
        np.testing.assert_array_equal(found, expected)


def test_a_part_of_the_outputs_that_is_none(rng):
    bank = keras_ether.AdapterBank(task(2, "greedy"), 3)
    silent = keras_ether.AdapterBank(task(2, "greedy", Silent), 3)
    for both in (bank, silent):
        both.add("a0", task(0, "greedy"))
    x, names = prompts(rng), ["a0", None] * 2
    found, wanted = (
        both.generate(x, names, stop_token_ids=None)["token_ids"]
        for both in (silent, bank)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.once
def test_one_adapter_for_each_prompt(rng):
    bank = keras_ether.AdapterBank(task(2, "greedy"), 3)
    with pytest.raises(ValueError, match="3 adapters for 4 prompts"):
        bank.generate(prompts(rng), [None] * 3, stop_token_ids=None)
    with pytest.raises(ValueError, match="no adapter 'a'"):
        bank.generate(prompts(rng), ["a"] * 4, stop_token_ids=None)


@pytest.mark.once
def test_a_sampler_that_is_changed(rng):
    model = task(2, "greedy")
    bank = keras_ether.AdapterBank(model, 3)
    bank.add("a")
    x, names = prompts(rng), ["a"] * 4
    greedy = bank.generate(x, names, stop_token_ids=None)["token_ids"]
    model.compile(sampler=keras_hub.samplers.TopKSampler(k=40, seed=1))
    other = bank.generate(x, names, stop_token_ids=None)["token_ids"]
    assert not np.array_equal(greedy, other)


@pytest.mark.once
def test_models_that_do_not_generate_are_refused():
    bank, _ = banks.bank_of()
    with pytest.raises(ValueError, match="can't generate"):
        bank.generate(models.inputs_of("mlp", np.random.default_rng(0)), [None])
