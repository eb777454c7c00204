# %% [markdown]
# # Three tasks on one model, in one batch
#
# ![Requests answered in a second of CPU, three ways](attachment:cover.png)
#
# One pretrained model, many users, each with an adapter of their own. Merged, a
# thousand adapters are a thousand models. A **bank** holds the model once, and
# a row for each adapter: one batch holds requests of many users, and each is
# answered by its own adapter.
#
# Here three adapters of ETHER+ ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)) learn three tasks on one real model:
# the verdicts of film critics, the mood of tweets, the intents of commands.
# Then one bank answers for all of them, you see what one batch gains, and how a
# web service would use it.
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
# = "bert_base_en"`. (That has not been run yet: no hub and no GPU were at
# hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "bert_base_en".
SAMPLES = 384
TEST_SAMPLES = 150
SEQUENCE_LENGTH = 24
BATCH_SIZE = 8
EPOCHS = 4
CAPACITY = 64
USERS = 48

# %%
import queue
import threading
import time

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from real_models import commands
from real_models import film_reviews
from real_models import minilm
from real_models import tweets

import keras_ether

GREEN, RED, GREY = "#1b7f79", "#b0413e", "#8c8c8c"
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## Three tasks
#
# Real text, real labels: sentences of critics with their verdict; tweets about
# airlines and politicians, rated by readers, as many of each mood; commands to
# a voice assistant, with one of seven intents. All heads have seven outputs,
# since the rows of a bank are alike; two tasks use two of them.

# %%
CLASSES = {
    "reviews": list(film_reviews.CLASSES),
    "tweets": list(tweets.CLASSES),
    "commands": list(commands.INTENTS),
}
OUTPUTS = max(map(len, CLASSES.values()))


def even(table, count):
    """Rows of a table, as many of each label, in turn."""
    groups = table.groupby("label").head(count // 2)
    return list(zip(groups["text"], groups["label"], strict=True))


count = SAMPLES + TEST_SAMPLES
data = {
    "reviews": even(film_reviews.load(), count),
    "tweets": even(tweets.load(), count),
    "commands": commands.load(),
}
train, test = {}, {}
for task, pairs in data.items():
    order = np.random.default_rng(0).permutation(len(pairs))[:count]
    texts = np.array([pairs[i][0] for i in order], dtype=object)
    numbers = np.array([CLASSES[task].index(pairs[i][1]) for i in order])
    test[task] = texts[:TEST_SAMPLES], numbers[:TEST_SAMPLES]
    train[task] = texts[TEST_SAMPLES:], numbers[TEST_SAMPLES:]
    print(f"{task}, {len(train[task][0])} to train on, for example:")
    print(f"  {CLASSES[task][numbers[0]]}: {texts[0][:62]}")

# %% [markdown]
# ## Three adapters
#
# `apply` puts adapters into the model; after training, `save_adapter` keeps the
# vectors and the head, and nothing else.

# %%
folder = PRESET or minilm.preset()
preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
    folder, sequence_length=SEQUENCE_LENGTH
)


def load_model(seed):
    """The pretrained model, which takes token ids, with a new head."""
    keras.utils.set_random_seed(seed)
    return keras_hub.models.TextClassifier.from_preset(
        folder, num_classes=OUTPUTS, preprocessor=None
    )


def tokens_of(texts):
    """Texts as the model takes them."""
    return {
        name: keras.ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def optimizer():
    """Adam's default rate for the backbone, ten times that for the new head."""
    adam = keras.optimizers.Adam
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adam(1e-3), {".*logits.*": adam(1e-2)})
    )


def accuracy(logits, task):
    return float((logits.argmax(-1) == test[task][1]).mean())


alone = {}
for seed, task in enumerate(CLASSES):
    model = load_model(seed)
    keras_ether.apply(model, seed=seed)
    model.compile(
        optimizer(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(
        tokens_of(train[task][0]),
        train[task][1],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
    )
    keras_ether.save_adapter(model, f"{task}.ether.safetensors")
    alone[task] = model.predict(
        tokens_of(test[task][0]), batch_size=48, verbose=0
    )
    size = os.path.getsize(f"{task}.ether.safetensors") / 1e3
    chance = np.bincount(test[task][1]).max() / TEST_SAMPLES
    print(
        f"{task}: {accuracy(alone[task], task):.1%} right "
        f"(chance {chance:.0%}), {size:.0f} KB"
    )

# %% [markdown]
# ## One bank
#
# `AdapterBank` takes an adapted model and has room for many adapters like it.
# `bank.model` is a Keras model with one more input, `adapter_id`. All test
# texts in mixed batches, each with its own adapter:

# %%
bank = keras_ether.AdapterBank(model, capacity=CAPACITY)
for task in CLASSES:
    bank.add(task, f"{task}.ether.safetensors")

texts = np.stack([test[task][0] for task in CLASSES], axis=1).ravel()
names = list(CLASSES) * TEST_SAMPLES
x = tokens_of(texts) | {"adapter_id": bank.ids(names)}
logits = bank.model.predict(x, batch_size=48, verbose=0)
for place, task in enumerate(CLASSES):
    mixed = logits[place :: len(CLASSES)]
    apart = np.abs(mixed - alone[task]).max()
    print(
        f"{task}: {accuracy(mixed, task):.1%} right in mixed batches; largest "
        f"difference to the model alone {apart:.0e}"
    )

# %% [markdown]
# ## Why one batch?
#
# 48 users have an adapter each (the three again, under 48 names), and each asks
# once. Three ways to answer:
#
# - **one batch** of the bank;
# - **merged copies**: a merged model for each user, asked one after the other.
#   It takes 48 times the memory, and here all answers come from one copy;
# - **swapping**: one model, into which each user's adapter file is loaded.
#
# Time is that of the processor, so that other work on the machine does not
# count.

# %%
users = [f"user {number}" for number in range(USERS)]
for number, user in enumerate(users):
    bank.add(user, f"{list(CLASSES)[number % 3]}.ether.safetensors")
request = tokens_of(texts[:USERS])
single = [{k: v[i : i + 1] for k, v in request.items()} for i in range(USERS)]
mixed = request | {"adapter_id": bank.ids(users)}
merged = load_model(seed=0)
keras_ether.load_adapter(merged, "reviews.ether.safetensors")
keras_ether.merge(merged)
swapped = load_model(seed=0)


def seconds(function, times):
    """Processor time of a call, the least of several."""
    found = []
    for _ in range(times + 1):  # The first compiles.
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found[1:])


def swap():
    for number in range(3):
        task = list(CLASSES)[number]
        keras_ether.load_adapter(swapped, f"{task}.ether.safetensors")
        swapped.predict_on_batch(single[number])
        keras_ether.remove(swapped, reset_head=True)


rates = {
    "one batch of the bank": USERS
    / seconds(lambda: bank.model.predict_on_batch(mixed), 5),
    "merged copies, one by one": USERS
    / seconds(lambda: [merged.predict_on_batch(x) for x in single], 3),
    "swapping adapters": 3 / seconds(swap, 2),
}

# %% tags=["cover"]
figure, axes = plt.subplots(figsize=(7.2, 2.4), layout="constrained")
for place, (rate, color) in enumerate(
    zip(rates.values(), (GREEN, GREY, RED), strict=True)
):
    axes.barh(place, rate, color=color, height=0.6)
    axes.annotate(f" {rate:,.1f}", (rate, place), va="center", fontsize=11)
axes.set_yticks(range(len(rates)), rates)
axes.invert_yaxis()
axes.set_xlim(0, 1.15 * max(rates.values()))
axes.set_xlabel("requests answered in a second of CPU, each by its own adapter")
axes.set_title(f"{USERS} users of one model, all at once", loc="left")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## The same text, three readings
#
# Each sentence is read by every adapter, in one batch. A frame marks the
# adapter that was trained for such text.

# %%
SENTENCES = {
    "reviews": [
        "A warm and funny film with a wonderful cast.",
        "Two dull hours that I will never get back.",
    ],
    "tweets": [
        "@united thank you for the upgrade, best crew ever!",
        "@united third delay today and nobody answers the phone",
    ],
    "commands": [
        "Book a table for four at an Italian place tonight",
        "Will it rain in Lisbon on Friday?",
    ],
}
sentences = [text for group in SENTENCES.values() for text in group]
readers = list(CLASSES) * len(sentences)
batch = tokens_of(np.repeat(sentences, len(CLASSES)))
batch["adapter_id"] = bank.ids(readers)
answers = bank.model.predict(batch, batch_size=len(readers), verbose=0)
shares = keras.ops.convert_to_numpy(keras.ops.softmax(answers))
shares = shares.reshape(len(sentences), len(CLASSES), OUTPUTS)

figure, axes = plt.subplots(figsize=(10.5, 3.2), layout="constrained")
axes.imshow(shares.max(-1), cmap="BuGn", vmin=0, vmax=1.6, aspect="auto")
for row, column in np.ndindex(shares.shape[:2]):
    task = list(CLASSES)[column]
    best = shares[row, column].argmax()
    name = CLASSES[task][best] if best < len(CLASSES[task]) else "?"
    own = row // 2 == column
    axes.annotate(
        f"{name}, {shares[row, column, best]:.0%}",
        (column, row),
        ha="center",
        va="center",
        weight="bold" if own else "normal",
        color="black" if own else "#666666",
    )
    if own:
        axes.add_patch(
            plt.Rectangle((column - 0.49, row - 0.46), 0.98, 0.92, fill=False)
        )
axes.set_yticks(range(len(sentences)), sentences, fontsize=9)
axes.set_xticks(range(len(CLASSES)), [f"adapter '{t}'" for t in CLASSES])
axes.xaxis.tick_top()
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## Behind a service
#
# Requests come one by one, from many clients at once. A worker takes what has
# come, and answers it in one batch; nothing is compiled for a new adapter,
# since batches have one size. `examples/serving/service.py` is the same as a
# web service, on Ray Serve.


# %%
class Service:
    """Answers requests of many adapters, as many at once as have come."""

    def __init__(self, bank, size):
        self.bank, self.size = bank, size
        self.requests, self.sizes = queue.Queue(), []
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, user, text):
        """The logits of a text, by a user's adapter."""
        answer = queue.Queue()
        self.requests.put((user, text, answer))
        return answer.get()

    def _work(self):
        while True:
            taken = [self.requests.get()]
            while len(taken) < self.size and not self.requests.empty():
                taken.append(self.requests.get())
            self.sizes.append(len(taken))
            # Filled up with the base, to a batch of one size.
            rest = self.size - len(taken)
            users = [user for user, _, _ in taken] + [None] * rest
            batch = tokens_of([text for _, text, _ in taken] + [""] * rest)
            batch["adapter_id"] = self.bank.ids(users)
            logits = self.bank.model.predict_on_batch(batch)
            for (_, _, answer), row in zip(taken, logits, strict=False):
                answer.put(row)


service = Service(bank, size=16)
found = {}


def client(number):
    """A user who asks for two texts, one after the other."""
    for place in (number, number + USERS):
        found[place] = service.ask(users[number], texts[place])


service.ask("reviews", "The first request compiles.")
service.sizes.clear()
clients = [threading.Thread(target=client, args=(n,)) for n in range(USERS)]
for thread in clients:
    thread.start()
for thread in clients:
    thread.join()

expected = np.stack(
    [alone[list(CLASSES)[p % USERS % 3]][p // 3] for p in sorted(found)]
)
answered = np.stack([found[place] for place in sorted(found)])
print(len(found), "requests in", len(service.sizes), "batches")
print(f"{np.mean(service.sizes):.1f} requests in a batch, on average")
print(
    "Largest difference to the models alone:", np.abs(answered - expected).max()
)

# %% [markdown]
# ## Count the memory

# %%
model_bytes = 4 * sum(int(np.prod(v.shape)) for v in merged.variables)
file_bytes = os.path.getsize("reviews.ether.safetensors")
counts = np.array([1, 10, 100, 1_000, 10_000])
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for color, label, size in (
    (RED, "merged copies", counts * model_bytes),
    (GREEN, "one bank", model_bytes + counts * file_bytes),
):
    axes.plot(counts, size / 1e9, "o-", color=color, lw=2.5)
    axes.annotate(
        f" {label}: {size[-1] / 1e9:,.1f} GB",
        (counts[-1], size[-1] / 1e9),
        color=color,
        va="center",
    )
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlim(0.8, 5e5)
axes.set_xticks(counts, [f"{count:,}" for count in counts])
axes.set_xlabel("adapters")
axes.set_ylabel("GB")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## All of it, to copy

# %%
model = keras_ether.apply(load_model(seed=0))
bank = keras_ether.AdapterBank(model, capacity=8)
for task in CLASSES:
    bank.add(task, f"{task}.ether.safetensors")
batch = tokens_of(sentences[:2])
batch["adapter_id"] = bank.ids(["reviews", None])  # None: the base.
print(bank.model.predict(batch, verbose=0).shape)

# %% [markdown]
# ## Where to go from here
#
# - `bank.generate(prompts, adapters=[...])` lets a causal language model answer
#   each prompt with its own adapter.
# - `bank.add(name, file, evict=True)` makes room by removing the adapter that
#   was used longest ago.
# - `bank.model.fit` trains several adapters at once, each from its own
#   examples.
