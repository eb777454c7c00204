# %% [markdown]
# # Adapt a vision transformer and a convolutional network with ETHER
#
# ![Nearest neighbours of test pictures, before and after](attachment:cover.png)
#
# Three ways to put a pretrained vision model to your own pictures: train a new
# head on frozen features; add **LoRA**; or add **ETHER+** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)), which multiplies each frozen kernel
# by a learned near-identity, two vectors a kernel.
#
# Here a real vision transformer (DINOv2 ViT-S/14, 22 million parameters) and a
# real convolutional network (EfficientNet-Lite0, 4.7 million) learn CIFAR-10's
# classes from twenty pictures of each. You see which pictures are neighbours
# before and after, accuracies with error bars beside LoRA, time and memory, and
# how far each layer has moved.
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
# They open the files that the pretrained weights are kept in.
install("onnx>=1.17")
install("torch>=2.7")
install("scikit-learn")

# %% [markdown]
# ## Parameters
#
# `PRESET = None` takes both models out of Python packages: no model hub is
# needed. That DINOv2 was tuned on by the package's authors to find what is
# salient in a picture; it is not the published one. On Kaggle, with a GPU, take
# `PRESET = "dinov2_small"` and `IMAGES`, a folder of an attached dataset with a
# subfolder for each class. (That preset has not been run yet: no hub and no GPU
# were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "dinov2_small", or another DINOv2.
IMAGES = None  # On Kaggle: "/kaggle/input/..."; None for CIFAR-10's test part.
SIZE = 70  # Five patches of 14 pixels a side; 224 on a GPU.
SAMPLES = 200
TEST_SAMPLES = 300
BATCH_SIZE = 20
EPOCHS = 6
SEEDS = 2
HEAD_RATE = 1e-2

# %%
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from measuring import Cost
from real_models import cifar10
from real_models import dinov2_small
from real_models import efficientnet_lite0
from sklearn.linear_model import LogisticRegression

import keras_ether

GREEN, RED = "#1b7f79", "#b0413e"
COLORS = {
    "regression": "#8c8c8c",
    "new head": "#c9a227",
    "ETHER+": GREEN,
    "LoRA r=8": RED,
}
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The pictures
#
# CIFAR-10's test part, 10,000 pictures of 32 by 32 pixels, which BIG-bench
# carries. We draw our own training and test parts from it, so no figure here is
# a result on CIFAR-10.

# %%


def read_folder(folder):
    """Pictures of a folder, with numbers and names of their classes."""
    batches = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIZE, SIZE), shuffle=False, verbose=False
    )
    pictures, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(pictures), np.concatenate(labels), batches.class_names


if IMAGES is None:
    pictures, labels = cifar10.load()
    names = cifar10.CLASSES
else:
    pictures, labels, names = read_folder(IMAGES)
rng = np.random.default_rng(0)
order = rng.permutation(len(pictures))
# As many of each class to train on.
train = np.concatenate(
    [
        order[labels[order] == label][: SAMPLES // len(names)]
        for label in range(len(names))
    ]
)
test = np.setdiff1d(order, train, assume_unique=True)[:TEST_SAMPLES]
train = rng.permutation(train)


def resized(rows):
    """Pictures of the size that the models take, as bytes."""
    large = keras.ops.image.resize(
        pictures[rows].astype("float32"), (SIZE, SIZE), interpolation="bicubic"
    )
    return np.clip(keras.ops.convert_to_numpy(large), 0, 255)


x_train = dinov2_small.scaled(resized(train))
x_test = dinov2_small.scaled(resized(test))
y_train, y_test = labels[train], labels[test]
print(len(train), "pictures to train on,", len(test), "held out")

figure, row = plt.subplots(1, 10, figsize=(9, 1.3), layout="constrained")
for axes, label in zip(row, range(10), strict=True):
    axes.imshow(pictures[train[y_train == label][0]].astype("uint8"))
    axes.set_title(names[label], fontsize=8)
    axes.axis("off")
plt.show()

# %% [markdown]
# ## The vision transformer
#
# The backbone's first output is that of the class token; a new head reads it. A
# model that is no task of KerasHub says with `trainable` what is new.

# %%


def load_model(seed):
    """The pretrained transformer with a new head."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Backbone.from_preset(
        PRESET or dinov2_small.preset(), image_shape=(SIZE, SIZE, 3)
    )
    outputs = keras.layers.Dense(len(names), name="head")(backbone.output[:, 0])
    return backbone, keras.Model(backbone.input, outputs)


def features(backbone, x):
    """What the head reads, of length one."""
    tokens = backbone.predict({"images": x}, batch_size=50, verbose=0)[:, 0]
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


backbone, model = load_model(seed=0)
before = features(backbone, x_train), features(backbone, x_test)
regression = LogisticRegression(max_iter=1000, C=10.0).fit(before[0], y_train)
baseline = regression.score(before[1], y_test)
print(f"{model.count_params():,} parameters")
print(f"Logistic regression on frozen features: {baseline:.1%} right")

# %% [markdown]
# ## Two ways to adapt it
#
# Query and value projections are adapted, which is where KerasHub's LoRA goes.
# (Without `targets`, `apply` takes all linear layers of a model that is no task
# or backbone of KerasHub.) Both have Adam's default rate, 1e-3. The new head
# starts from nothing and has ten times that rate, by an optimizer of its own.
# Beside them: the head alone.

# %%


def frozen(backbone, model, seed):
    """The head alone."""
    backbone.trainable = False


def ether(backbone, model, seed):
    """Adapters of ETHER+ in the backbone, and the head."""
    keras_ether.apply(
        model, targets=["query", "value"], trainable=["head"], seed=seed
    )


def lora(backbone, model, seed):
    """KerasHub's LoRA in the same layers, and the head."""
    backbone.enable_lora(rank=8)


WAYS = {"new head": frozen, "ETHER+": ether, "LoRA r=8": lora}


def optimizer(head="head", rate=1e-3):
    """Adam, with a rate of its own for the head."""
    adam = keras.optimizers.Adam
    of_head = {f".*{head}.*": adam(HEAD_RATE)}
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(rate), of_head)
    )


def train_model(model, x, y, seed, **rates):
    """Trains, and returns what it cost."""
    model.compile(
        optimizer(**rates),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    cost = Cost()
    order = np.random.default_rng(seed).permutation(len(y))
    model.fit(
        x[order],
        y[order],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[cost],
    )
    return cost


def trained_inside(model, head="head"):
    """How many parameters train, but for the head."""
    return sum(
        int(np.prod(v.shape))
        for v in model.trainable_variables
        if head not in v.path
    )


runs, models = [], {}
for seed in range(SEEDS):
    for way, prepare in WAYS.items():
        backbone, model = load_model(seed)
        prepare(backbone, model, seed)
        cost = train_model(model, x_train, y_train, seed)
        logits = model.predict(x_test, batch_size=50, verbose=0)
        models[way] = backbone, model, logits
        accuracy = float((logits.argmax(-1) == y_test).mean())
        runs.append(
            {
                "way": way,
                "accuracy": accuracy,
                "parameters": trained_inside(model),
                "CPU s a step": cost.step,
                "MB": cost.memory and cost.memory / 1e6,
            }
        )
        print(f"seed {seed}, {way}: {accuracy:.1%} right")
runs = pd.DataFrame(runs)
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

# %%
sampling = np.sqrt(baseline * (1 - baseline) / len(y_test))
figure, axes = plt.subplots(figsize=(7.2, 2.4), layout="constrained")
bars = {"regression": (baseline, 0.0)} | {
    way: (row["accuracy"], row["deviation"]) for way, row in summary.iterrows()
}
for place, (way, (mean, deviation)) in enumerate(bars.items()):
    error = np.hypot(deviation, sampling)
    axes.barh(place, 100 * mean, color=COLORS[way], height=0.6)
    axes.errorbar(100 * mean, place, xerr=100 * error, color="k", capsize=4)
    axes.annotate(
        f"{mean:.1%}", (100 * (mean + error) + 0.8, place), va="center"
    )
axes.set_yticks(
    range(len(bars)),
    [
        f"{way}, {summary.loc[way, 'parameters']:,.0f}"
        if way in summary.index
        else "logistic regression"
        for way in bars
    ],
)
axes.set_xlim(0, 105)
axes.set_xlabel("test accuracy, % (bars: seeds and test pictures)")
axes.set_title(
    "DINOv2 ViT-S/14, trained parameters in the backbone", loc="left"
)
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# With 200 pictures of 70 by 70 pixels nothing here gains much over a logistic
# regression on the frozen features. LoRA is 2.5 points above it, ETHER+, with a
# 25th of LoRA's parameters, 3 points below: one standard error of 300 test
# pictures each. Larger pictures and more of them are to be tried.
#
# ## Who is whose neighbour
#
# For a few test pictures, the four nearest training pictures by the backbone's
# features: on the left as pretrained, on the right as adapted. A green frame
# marks the right class. (`disabled` would give the pretrained features from the
# adapted model, too.) The pictures are those of the test part whose neighbours
# gained most; the share of right neighbours over all test pictures stands in
# the title.

# %% tags=["cover"]
backbone, model, logits = models["ETHER+"]
after = features(backbone, x_train), features(backbone, x_test)


def neighbours(pair):
    """The four nearest training pictures of each test picture."""
    return np.argsort(-(pair[1] @ pair[0].T), axis=1)[:, :4]


near = {"pretrained": neighbours(before), "with ETHER+": neighbours(after)}
right = {k: y_train[v] == y_test[:, None] for k, v in near.items()}
gain = right["with ETHER+"].sum(1) - right["pretrained"].sum(1)
# One of each class, those that gained most.
best = [
    rows[np.argmax(gain[rows])]
    for label in range(len(names))
    if len(rows := np.flatnonzero(y_test == label))
]
chosen = sorted(best, key=lambda row: -gain[row])[:4]

figure = plt.figure(figsize=(8.6, 4.2), layout="constrained")
parts = figure.subfigures(1, 3, width_ratios=[1.15, 4, 4])


def draw(axes, picture, color):
    axes.imshow(picture.astype("uint8"))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(3)


column = parts[0].subplots(len(chosen), 1)
parts[0].suptitle("test picture", fontsize=10)
for axes, row in zip(column, chosen, strict=True):
    draw(axes, pictures[test[row]], "#444444")
    axes.set_ylabel(names[y_test[row]], fontsize=9)
for part, (title, found) in zip(parts[1:], near.items(), strict=True):
    share = right[title].mean()
    part.suptitle(f"{title}: {share:.0%} right neighbours", fontsize=10)
    for line, row in zip(part.subplots(len(chosen), 4), chosen, strict=True):
        for axes, place in zip(line, found[row], strict=True):
            good = y_train[place] == y_test[row]
            draw(axes, pictures[train[place]], GREEN if good else RED)
plt.show()

# %% [markdown]
# ## How far has it moved?
#
# ETHER+ keeps every kernel near its pretrained value: a block is at most √2
# away from the identity, whatever is learned. `diagnose` measures each layer.

# %%
diagnosis = keras_ether.diagnostics.diagnose(
    model, energy=False, print_fn=lambda text: None
)
keras_ether.diagnostics.plot_distances(diagnosis)

# %% [markdown]
# ## Keep it, merge it
#
# The adapter file holds the vectors and the head. Merged, the model is an
# ordinary one.

# %%
keras_ether.save_adapter(model, "pictures.ether.safetensors")
size = os.path.getsize("pictures.ether.safetensors")
print(f"{size / 1e3:.0f} KB; the model: {4e-6 * model.count_params():.0f} MB")
keras_ether.merge(model)
merged = model.predict(x_test, batch_size=50, verbose=0)
print("Largest difference of an output:", float(np.abs(merged - logits).max()))

# %% [markdown]
# ## A convolutional network
#
# The same call adapts convolutions: a reflection acts on the channels. Keras
# has no LoRA for them. The first convolution has three channels, so blocks are
# whole: `rank_blocks=1`. (The weights are TensorFlow's; `real_models` says why
# pictures are turned for them. On Kaggle, `"efficientnet_lite0_ra_imagenet"`
# needs no turning.)

# %%
WIDE = 64
small = keras.ops.image.resize(
    pictures[np.concatenate([train, test])].astype("float32"),
    (WIDE, WIDE),
    interpolation="bicubic",
)
small = np.clip(keras.ops.convert_to_numpy(small), 0, 255)
small_train, small_test = np.split(
    efficientnet_lite0.scaled(small), [len(train)]
)


def load_network(seed):
    """The pretrained network with a new head."""
    keras.utils.set_random_seed(seed)
    return keras_hub.models.ImageClassifier.from_preset(
        efficientnet_lite0.preset(),
        num_classes=len(names),
        preprocessor=None,
        input_shape=(WIDE, WIDE, 3),
    )


found = {"new head": [], "ETHER+": []}
for seed in range(SEEDS):
    for way, accuracies in found.items():
        network = load_network(seed)
        if way == "new head":
            network.backbone.trainable = False
        else:
            keras_ether.apply(network, rank_blocks=1, seed=seed)
        train_model(
            network, small_train, y_train, seed, head="predictions", rate=1e-4
        )
        answers = network.predict(small_test, batch_size=50, verbose=0)
        accuracies.append(float((answers.argmax(-1) == y_test).mean()))
for way, accuracies in found.items():
    print(f"{way}: {np.mean(accuracies):.1%} ± {np.std(accuracies):.1%} right")
adapted = len(keras_ether.summary(network, print_fn=str).rows)
print(f"{adapted} convolutions adapted")

# %% [markdown]
# All 33 convolutions were adapted at once, at a tenth of Adam's default rate:
# level with a new head alone. (At the default rate and 30 steps it fell to
# 16 %. With so few pictures, try lower rates for convolutions.)
#
# ## All of it, to copy

# %%
backbone, model = load_model(seed=0)
keras_ether.apply(model, targets=["query", "value"], trainable=["head"])
model.compile(
    optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
model.fit(x_train, y_train, batch_size=BATCH_SIZE, verbose=0)
keras_ether.save_adapter(model, "pictures.ether.safetensors")
keras_ether.merge(model)

# %% [markdown]
# ## Where to go from here
#
# - Lower `SAMPLES`: how few pictures of a class are enough?
# - `targets="all-linear"` adapts the feed-forward maps too.
