"""Masked prompts, and the code of the page about language models."""

import importlib.util
import re
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest

from examples.language_models import masked
from tests import real_models

PAGE = Path(__file__).parents[2] / "examples" / "LANGUAGE_MODELS.md"
PROMPTS = ["a plane at", "airport"]
RESPONSES = [" airport", " a plane at airport"]


def preprocessor(length, family="GPT2"):
    words = ["<pad>", "<|endoftext|>", *"Ġairplnehotxk", "ai", "air"]
    if family != "GPT2":
        words.append("<|im_end|>")
    tokenizer = getattr(keras_hub.models, f"{family}Tokenizer")(
        vocabulary={word: place for place, word in enumerate(words)},
        merges=["a i", "ai r"],
    )
    made = getattr(keras_hub.models, f"{family}CausalLMPreprocessor")
    return made(tokenizer, sequence_length=length)


@pytest.mark.once
@pytest.mark.parametrize("family", ["GPT2", "Qwen", "Qwen3"])
def test_responses_and_their_end_are_learned_and_nothing_else(family):
    made = preprocessor(40, family)
    # Qwen's tokenizers have no start token.
    starts = made.tokenizer.start_token_id is not None
    assert starts == (family == "GPT2")
    inputs, targets, weights = masked(made, PROMPTS, RESPONSES)
    tokenizer = made.tokenizer
    for row, (prompt, response) in enumerate(
        zip(PROMPTS, RESPONSES, strict=True)
    ):
        learned = targets[row][weights[row] == 1].tolist()
        assert learned.pop() == tokenizer.end_token_id
        assert tokenizer.detokenize(learned) == response
        used = inputs["token_ids"][row][inputs["padding_mask"][row] == 1]
        # What is generated from begins alike, and goes on with the response.
        begun = made.generate_preprocess([prompt], sequence_length=40)
        begun = np.array(begun["token_ids"])[0][
            np.array(begun["padding_mask"])[0] == 1
        ]
        np.testing.assert_array_equal(used[: len(begun)], begun)
        assert tokenizer.detokenize(used[starts:-1]) == prompt + response
    np.testing.assert_array_equal(inputs["token_ids"][:, 1:], targets[:, :-1])


@pytest.mark.once
def test_it_may_be_called_at_any_time():
    made = preprocessor(40)
    _, *first = masked(made, PROMPTS, RESPONSES)
    used = preprocessor(40)
    used.generate_preprocess(PROMPTS, sequence_length=40)
    for other in (made, used):
        _, *again = masked(other, PROMPTS, RESPONSES)
        np.testing.assert_array_equal(again, first)


@pytest.mark.once
def test_long_pairs_are_cut_and_none_at_all_is_an_error():
    inputs, targets, weights = masked(preprocessor(8), PROMPTS, RESPONSES)
    assert inputs["token_ids"].shape == targets.shape == (2, 8)
    assert weights[0].sum() == 0
    assert weights[1].sum() > 0
    with pytest.raises(ValueError, match="sequence_length=2"):
        masked(preprocessor(2), PROMPTS, RESPONSES)
    with pytest.raises(ValueError, match="shorter"):
        masked(preprocessor(8), PROMPTS, RESPONSES[:1])


@pytest.mark.once
@pytest.mark.nightly
# KerasHub does not close the file of a tokenizer.
@pytest.mark.filterwarnings("ignore:(?s).*tokenizer.model")
def test_masks_are_those_of_kerashub_where_it_has_any():
    folder = real_models.folder("gemma3_270m")
    made = keras_hub.models.CausalLMPreprocessor.from_preset(
        folder, sequence_length=24
    )
    texts = {"prompts": PROMPTS, "responses": RESPONSES}
    x, *others = made({k: np.array(v) for k, v in texts.items()})
    inputs, *found = masked(made, PROMPTS, RESPONSES)
    theirs = [*(x[name] for name in inputs), *others]
    for one, other in zip(theirs, [*inputs.values(), *found], strict=True):
        one = keras.ops.convert_to_numpy(one)
        np.testing.assert_array_equal(one, other)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    if importlib.util.find_spec("safetensors.torch") is None:
        pytest.skip("needs torch, for the export")
    (code,) = re.findall(
        r"<!-- from a preset to a file -->\n```python\n(.*?)```",
        PAGE.read_text("utf-8"),
        re.DOTALL,
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    folder = real_models.folder("smollm2_135m_instruct")
    code = code.replace(
        '"hf://HuggingFaceTB/SmolLM2-135M-Instruct"', repr(folder)
    )
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    first, last = names["history"]["loss"][0], names["history"]["loss"][-1]
    assert last < first
    assert (tmp_path / "capitals.ether.safetensors").exists()
    assert (tmp_path / "capitals" / "adapter_config.json").exists()
    reloaded = keras_hub.models.CausalLM.from_preset("merged")
    reloaded.compile(sampler="greedy")
    prompt = names["prompts"][:1]
    assert (
        reloaded.generate(prompt, max_length=48, strip_prompt=True)
        == names["answers"][:1]
    )
