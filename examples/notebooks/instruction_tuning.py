# %% [markdown]
# # Teach a language model a format: Gemma 3 with ETHER
#
# ![Right answers of four ways, with error bars](attachment:cover.png)
#
# A pretrained language model goes on with a text; it has not been told to
# answer. Here **Gemma 3 270M** learns to turn commands into JSON:
#
# > `Will it snow in MT on June 13, 2038?` → `{"intent": "get_weather"}`
#
# Whether an answer is right can be checked: is it JSON, and is it the right
# intent? We ask the model as it is, then with seven examples in the prompt,
# then tuned by **ETHER+** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)), which multiplies frozen kernels by
# learned near-identities, and by **LoRA**. All four answer commands that none
# of them has seen.
#
# %% [markdown]
# ## Setup
#
# `keras_ether` is not on PyPI yet: `KERAS_ETHER` is a folder with a checkout of
# its repository, on Kaggle a dataset that you attach. What is already there, in
# a version that will do, is not installed again. Without internet, attach the
# folder that `nox -s wheel` writes instead. `KERAS_BACKEND` chooses JAX,
# TensorFlow or PyTorch, before Keras is imported.

# %%
import os
import subprocess
import sys
from glob import glob
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version

from packaging.requirements import Requirement

KERAS_ETHER = "/kaggle/input/keras-ether"
WHEELS = glob(f"{KERAS_ETHER}/*.whl")
if WHEELS:  # Made by `nox -s wheel`, for notebooks without internet.
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": KERAS_ETHER}
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.append(f"{KERAS_ETHER}/examples")  # For `measuring`, `real_models`.


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


install("keras_ether", *([] if WHEELS else [KERAS_ETHER]))
install("keras>=3.15")
install("keras-hub>=0.32")
# They open the file that the pretrained weights are kept in.
install("gguf>=0.10")
install("sentencepiece")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` takes Gemma 3 270M (4-bit weights, read as float32) out of a
# Python package: no model hub is needed, and two cores do. Google's
# [terms](https://ai.google.dev/gemma/terms) for Gemma hold. On Kaggle, with a
# GPU, take `PRESET = "gemma3_1b"` or `"gemma2_2b_en"` (accept their licence on
# Kaggle first), and all 600 commands. (Those have not been run yet: no hub and
# no GPU were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "gemma3_1b" or "gemma2_2b_en".
SAMPLES = 70
TEST_SAMPLES = 42
SEQUENCE_LENGTH = 40
BATCH_SIZE = 7
EPOCHS = 4

# %%
import gc
import json

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from measuring import Cost
from real_models import commands
from real_models import gemma3_270m

import keras_ether

COLORS = {
    "as it is": "#8c8c8c",
    "seven examples in the prompt": "#c9a227",
    "ETHER+": "#1b7f79",
    "LoRA r=8": "#b0413e",
}
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The commands
#
# 693 commands to a voice assistant, of seven intents (SNIPS, as BIG-bench
# carries it, which asks that its data be no part of what a published model
# learns: this model is thrown away). As many of each intent train; others,
# which no way sees while it trains, are asked.

# %%
by_intent = {intent: [] for intent in commands.INTENTS}
for command, intent in commands.load():
    if len(command.split()) <= 12:
        by_intent[intent].append(command)


def prompt(command):
    return f"Command: {command}\nJSON:"


def response(intent):
    return f' {{"intent": "{intent}"}}'


def pairs(start, count):
    """So many commands, in turn of every intent."""
    return [
        (by_intent[intent][start + place], intent)
        for place in range(count // len(by_intent))
        for intent in by_intent
    ]


test = pairs(0, TEST_SAMPLES)
train = pairs(TEST_SAMPLES // len(by_intent), SAMPLES)
print(len(train), "to train on,", len(test), "to ask")
for command, intent in train[:7]:
    print(f"{intent:>22}: {command}")

# %% [markdown]
# ## The model
#
# KerasHub's preprocessor takes prompts and responses apart, and the loss counts
# the tokens of the responses alone: the model does not learn to write commands.

# %%


def load_model():
    """The pretrained language model, with its preprocessor."""
    gc.collect()
    keras.utils.set_random_seed(0)
    model = keras_hub.models.CausalLM.from_preset(
        PRESET or gemma3_270m.preset()
    )
    model.preprocessor.sequence_length = SEQUENCE_LENGTH
    return model


def arrays(examples):
    """Examples as `fit` and `evaluate` take them."""
    return {
        "prompts": np.array([prompt(c) for c, _ in examples], dtype=object),
        "responses": np.array([response(i) for _, i in examples], dtype=object),
    }


def compiled(model):
    """The model, with Adam's default rate, and greedy answers."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[],
        sampler="greedy",
    )
    return model


model = compiled(load_model())
print(f"{model.count_params():,} parameters")
inputs, targets, weights = model.preprocessor(
    {key: value[:1] for key, value in arrays(train).items()}
)
learned = np.array(targets[0])[np.array(weights[0], dtype=bool)].tolist()
print("Learned:", repr(model.preprocessor.tokenizer.detokenize(learned)))

# %% [markdown]
# ## Ask it as it is, and with examples in the prompt


# %%
def ask(model, before="", length=SEQUENCE_LENGTH):
    """The first line of each answer to the test commands."""
    prompts = [before + prompt(command) for command, _ in test]
    texts = model.generate(prompts, max_length=length, strip_prompt=True)
    return [text.strip().split("\n")[0] for text in texts]


def score(answers):
    """Shares of answers that are JSON, and that name the right intent."""
    is_json, is_right = [], []
    for answer, (_, intent) in zip(answers, test, strict=True):
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        is_json.append(isinstance(found, dict))
        is_right.append(is_json[-1] and found.get("intent") == intent)
    return float(np.mean(is_json)), float(np.mean(is_right))


shots = "".join(
    f"{prompt(command)}{response(intent)}\n\n" for command, intent in train[:7]
)
answers = {
    "as it is": ask(model),
    "seven examples in the prompt": ask(model, shots, length=240),
}
loss_before = model.evaluate(arrays(test), batch_size=7, verbose=0)
print(f"Loss on test answers: {loss_before:.2f} nats a token")
for way, found in answers.items():
    print(f"{way}: {score(found)[0]:.0%} JSON, {score(found)[1]:.0%} right")

# %% [markdown]
# ## Tune it, twice
#
# `keras_ether.apply(model)` adapts query and value projections, where
# KerasHub's LoRA goes, too. Both at Adam's default rate; the loss on the test
# answers is computed after each epoch.

# %%
losses, costs, trained = {}, {}, {}
for way in ("LoRA r=8", "ETHER+"):
    del model
    model = load_model()
    if way == "ETHER+":
        keras_ether.apply(model, seed=0)
    else:
        model.backbone.enable_lora(rank=8)
    compiled(model)
    trained[way] = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    costs[way] = Cost()
    history = model.fit(
        arrays(train),
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        validation_data=arrays(test),
        validation_batch_size=7,
        # KerasHub hands Keras a stream; the intents come in turn.
        shuffle=False,
        verbose=0,
        callbacks=[costs[way]],
    ).history
    losses[way] = [loss_before, *history["val_loss"]]
    answers[way] = ask(model)
    is_json, is_right = score(answers[way])
    print(f"{way}: {trained[way]:,} parameters, {is_right:.0%} right")

# %% tags=["cover"]
figure, (left, right) = plt.subplots(
    1,
    2,
    figsize=(9, 3.1),
    width_ratios=[1.5, 1],
    layout="constrained",
)
for place, (way, color) in enumerate(COLORS.items()):
    is_json, is_right = score(answers[way])
    error = np.sqrt(max(is_right * (1 - is_right), 0.02) / len(test))
    left.barh(
        place,
        100 * is_json,
        color="none",
        edgecolor=color,
        hatch="///",
        linewidth=1,
        height=0.6,
    )
    left.barh(place, 100 * is_right, color=color, height=0.6)
    left.errorbar(100 * is_right, place, xerr=100 * error, color="k", capsize=4)
    left.annotate(f"{is_right:.0%}", (112, place), va="center", ha="right")
left.set_yticks(
    range(4),
    ["as it is", "seven examples\nin the prompt", "ETHER+", "LoRA r=8"],
)
left.set_xlim(0, 113)
left.set_xticks(range(0, 101, 20))
left.set_xlabel("test answers, %: right (full), JSON at all (hatched)")
left.invert_yaxis()
left.set_title("Commands to JSON, Gemma 3 270M", loc="left")
for way, curve in losses.items():
    label = f"{way}, {trained[way]:,}"
    right.plot(curve, "o-", color=COLORS[way], label=label)
right.set_xticks(range(EPOCHS + 1))
right.set_ylim(0)
right.set_xlabel("epochs")
right.set_ylabel("loss on test answers, nats a token")
right.legend(title="parameters", fontsize=8, title_fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# (The bars are standard errors for this many questions: ways whose bars overlap
# can't be told apart.)
#
# ## Before and after

# %%
for row in range(0, 21, 3):
    print(test[row][0])
    for way in COLORS:
        print(f"  {way[:14]:>14}: {answers[way][row][:56]}")

# %% [markdown]
# ## What it took
#
# CPU seconds are those of all cores together; memory is how much the process
# grows while it trains, with the optimizer's state.

# %%
for way, cost in costs.items():
    print(
        f"{way:>8}: {trained[way]:>9,} parameters, {cost.step:.1f} CPU s a "
        f"step, {(cost.memory or 0) / 1e6:.0f} MB"
    )

# %% [markdown]
# ## Keep it, switch it off, merge it
#
# The adapter file is all that was learned. With `disabled` the model answers as
# it did before; `merge` makes it an ordinary model, which `save_to_preset`
# writes for any KerasHub, and `export_to_peft` a LoRA folder for vLLM.

# %%
keras_ether.save_adapter(model, "commands.ether.safetensors")
size = os.path.getsize("commands.ether.safetensors")
print(f"{size / 1e3:.0f} KB; the model: {4e-6 * model.count_params():,.0f} MB")
with keras_ether.disabled(model):
    off = ask(model)
print("Disabled, it answers as before:", off == answers["as it is"])
keras_ether.merge(model)
merged = ask(model)
same = np.mean([a == b for a, b in zip(merged, answers["ETHER+"], strict=True)])
print(f"Merged, {same:.0%} of the answers are the same")

# %% [markdown]
# ## All of it, to copy

# %%
model = load_model()
keras_ether.apply(model)
compiled(model).fit(arrays(train), batch_size=BATCH_SIZE, verbose=0)
keras_ether.save_adapter(model, "commands.ether.safetensors")
keras_ether.merge(model)
print(model.generate(prompt("Play some jazz."), max_length=SEQUENCE_LENGTH))

# %% [markdown]
# ## Where to go from here
#
# - `examples/LANGUAGE_MODELS.md`: masks, targets, lengths, generation, vLLM.
# - `targets="all-linear"` adapts the feed-forward maps too.
