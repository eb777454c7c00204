# %% [markdown]
# # Adapt a vision transformer to new images with ETHER
#
# ## Introduction
#
# A vision transformer that was pretrained on many images can be adapted to new
# ones by a few examples. There are three ways to do it:
#
# - train only a new **head** on top of the frozen backbone: cheap, but the
#   backbone goes on looking at the new images with the eyes of the old ones;
# - train **everything**: the backbone adapts, every task gets a model of its
#   own, and a few images easily spoil what was learned from many;
# - train the head and **ETHER** ([Bini et al., ICML
#   2024](https://arxiv.org/abs/2405.20271)): the backbone adapts, by very few
#   parameters, and stays close to the pretrained one.
#
# ETHER multiplies each frozen kernel by a mirror, `W' = (I − 2 u uᵀ) W`, and
# trains only the direction `u` of the mirror. We compare the three ways.

# %% [markdown]
# ## Setup
#
# `keras_ether` is not on PyPI yet. `KERAS_ETHER` says where pip finds it: a
# Kaggle dataset with a checkout of its repository, which you attach to the
# notebook, or a git address, `git+https://...`. What is already there, in a
# version that will do, is not installed again. The backend has to be chosen
# before Keras is imported.

# %%
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
install("scikit-learn")

# %% [markdown]
# ## Parameters
#
# On Kaggle, take `PRESET = "vit_base_patch16_224_imagenet"` and let `IMAGES`
# be a folder of an attached dataset, with a subfolder of pictures for each
# class. (That preset has not been run yet: no hub and no GPU were at hand.)
#
# `PRESET = None` needs no model hub: a tiny vision transformer is pretrained
# here, on handwritten digits from 0 to 4. `IMAGES = None` takes the digits
# from 5 to 9 as the new images, which that model has never seen.

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "vit_base_patch16_224_imagenet".
IMAGES = None  # On Kaggle: a folder, "/kaggle/input/..."; None for digits.
SAMPLES = 100
BATCH_SIZE = 16
EPOCHS = 15
LEARNING_RATE = 1e-2
PRETRAINING_EPOCHS = 20  # Of the tiny transformer.

# %%
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import keras_ether

keras.utils.set_random_seed(0)
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The new images

# %%


def digits(classes):
    """Pictures of digits, 8 x 8 pixels, and the numbers of their classes."""
    found = load_digits()
    chosen = np.flatnonzero(np.isin(found.target, classes))
    chosen = np.random.default_rng(0).permutation(chosen)
    grey = found.images[chosen] * (255 / 16)
    labels = np.searchsorted(classes, found.target[chosen])
    return np.repeat(grey[..., None], 3, axis=-1).astype("float32"), labels


def pictures(folder, size):
    """Pictures of a folder, and the numbers and names of their classes."""
    batches = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), shuffle=False, verbose=False
    )
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels), batches.class_names


if IMAGES is None:
    names = ["5", "6", "7", "8", "9"]
    images, labels = digits([5, 6, 7, 8, 9])
else:
    images, labels, names = pictures(IMAGES, 8 if PRESET is None else 224)

order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order], labels[order]
train_images, test_images = np.split(images, [SAMPLES])
train_labels, test_labels = np.split(labels, [SAMPLES])
print(
    len(train_images), "images to train on,", len(test_images), "to test with"
)

# %%


def show(some_images, titles, heading):
    """Draws a row of pictures."""
    figure, row = plt.subplots(
        1, len(titles), figsize=(8, 1.7), layout="constrained"
    )
    figure.suptitle(heading)
    for axes, image, title in zip(row, some_images, titles, strict=False):
        axes.imshow(image / 255)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    plt.show()


show(
    train_images,
    [names[label] for label in train_labels[:8]],
    "New images, and what they are",
)

# %% [markdown]
# ## The pretrained model
#
# On Kaggle it is downloaded. The tiny one is trained now, on the other digits,
# and saved as a preset of our own in the folder `tiny_vit`. From there on the
# two are alike: `from_preset` loads the backbone and puts a new, random head
# on it.

# %%


def compile_model(model, rate, steps):
    """Adam, with a rate that falls to zero along a cosine."""
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def pretrain(folder):
    """Trains a tiny vision transformer on old images, and saves it."""
    old_images, old_labels = digits([0, 1, 2, 3, 4])
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(8, 8), scale=1 / 255
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone=keras_hub.models.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=2,
            num_layers=3,
            num_heads=4,
            hidden_dim=48,
            mlp_dim=96,
        ),
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(converter),
        num_classes=5,
    )
    steps = PRETRAINING_EPOCHS * -(-len(old_images) // 32)
    compile_model(model, 2e-3, steps)
    history = model.fit(
        old_images,
        old_labels,
        batch_size=32,
        epochs=PRETRAINING_EPOCHS,
        # KerasHub hands Keras a stream; the data are shuffled already.
        shuffle=False,
        verbose=0,
    ).history
    print(f"Pretrained: {history['accuracy'][-1]:.1%} of the old digits right")
    model.save_to_preset(folder)


def load_model():
    """The pretrained model with a new head, the same one at each call."""
    keras.utils.set_random_seed(0)
    return keras_hub.models.ImageClassifier.from_preset(
        PRESET or "tiny_vit", num_classes=len(names)
    )


if PRESET is None:
    pretrain("tiny_vit")
print(f"{load_model().count_params():,} parameters in the model")

# %% [markdown]
# ## Three ways
#
# Each starts from the same pretrained model and the same head, sees the same
# images, and has a rate that suits it. ETHER takes a high one.

# %%


def head_only(model):
    """Freezes the backbone."""
    model.backbone.trainable = False


def everything(model):
    """Leaves all weights trainable."""


def ether(model):
    """Puts ETHER into all linear maps of the backbone."""
    keras_ether.apply(model, targets="all-linear", rank_blocks=4, seed=0)


WAYS = {
    "head only": (head_only, 1e-2),
    "everything": (everything, 1e-3 if PRESET is None else 2e-5),
    "ETHER": (ether, LEARNING_RATE),
}

models, trained, curves = {}, {}, {}
for way, (prepare, rate) in WAYS.items():
    model = load_model()
    steps = EPOCHS * -(-SAMPLES // BATCH_SIZE)
    prepare(model)
    compile_model(model, rate, steps)
    untrained = model.evaluate(test_images, test_labels, verbose=0)[1]
    history = model.fit(
        train_images,
        train_labels,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        validation_data=(test_images, test_labels),
        shuffle=False,
        verbose=0,
    ).history
    models[way] = model
    trained[way] = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    curves[way] = [untrained, *history["val_accuracy"]]
    print(f"{way:>10}: {trained[way]:>10,} parameters train, ", end="")
    print(f"{curves[way][-1]:.1%} of the new images right")

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
colors = {"head only": "#b0b0b0", "everything": "#e08a1e", "ETHER": "#1b7f79"}
for way, curve in curves.items():
    axes.plot(curve, color=colors[way], label=f"{way} ({trained[way]:,})")
majority = np.bincount(test_labels).max() / len(test_labels)
axes.axhline(majority, color="black", linestyle=":", label="majority class")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.set_xlabel("epochs")
axes.set_ylabel("accuracy on new images")
axes.set_ylim(0, 1.02)
axes.set_title("Three ways to adapt a vision transformer")
axes.legend(
    title="parameters that train", loc="upper left", bbox_to_anchor=(1, 1)
)
plt.show()

# %% [markdown]
# ## What it sees
#
# Pictures of the test set, and the answers of the model with ETHER.

# %%
model = models["ETHER"]
answers = model.predict(test_images, verbose=0)
guesses = answers.argmax(-1)
show(
    test_images,
    [
        f"{names[guess]}"
        if guess == label
        else f"{names[guess]}, not {names[label]}"
        for guess, label in zip(guesses[:8], test_labels[:8], strict=True)
    ],
    "Test images, and what the model takes them for",
)

# %% [markdown]
# ## How far has it moved?
#
# A mirror is always at the distance 2 from the identity, whatever was learned:
# that is what keeps the model near the pretrained one. What differs from layer
# to layer is by how much the kernel changes.

# %%
diagnosis = keras_ether.diagnostics.diagnose(
    model, energy=False, print_fn=lambda text: None
)
keras_ether.diagnostics.plot_distances(diagnosis)

# %% [markdown]
# ## Keep it, merge it
#
# The adapter file holds the vectors and the new head. Merged, the model is an
# ordinary one again.

# %%
keras_ether.save_adapter(model, "images.ether.safetensors")
adapter_bytes = os.path.getsize("images.ether.safetensors")
print(f"The adapter file has {adapter_bytes / 1e3:.0f} KB,", end=" ")
print(f"the model {4 * model.count_params() / 1e3:,.0f} KB.")

keras_ether.merge(model)
merged = model.predict(test_images, verbose=0)
print("Largest difference of an output:", float(np.abs(merged - answers).max()))
model.save("images.keras")

# %% [markdown]
# ## Where to go from here
#
# - Lower `SAMPLES`: how few new images are enough?
# - `targets="all"` adapts convolutions too, so that convolutional networks can
#   be adapted in the same way. The first convolution has three channels, which
#   four blocks don't divide: take `rank_blocks=1`.
