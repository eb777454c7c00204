# %% [markdown]
# # Personalise Stable Diffusion 3 with ETHER+
#
# ## Introduction
#
# A text-to-image model knows flowers, but not *your* flower. Personalising
# teaches it one subject from a few pictures, tied to a rare word: "a photo of
# sks flower" ([DreamBooth](https://arxiv.org/abs/2208.12242)).
#
# The risk is that the model forgets everything else: a few pictures, seen
# hundreds of times, pull its weights far away. **ETHER+** ([Bini et al., ICML
# 2024](https://arxiv.org/abs/2405.20271)) can't go far. Each frozen kernel `W`
# becomes `H W G` with
#
# $$ H = I - u u^\top + v v^\top, \quad
# \lVert u \rVert = \lVert v \rVert = 1 $$
#
# and only the vectors train. At the start `u = v` and nothing has changed, and
# whatever is learned, `H` stays within a distance of 2 from the identity. In
# the paper it keeps subjects as well as LoRA does, with half of its parameters.
#
# KerasHub's `StableDiffusion3TextToImage` has a `generate`, but no `fit`. So
# we write out the training step of *flow matching*, which takes twenty lines.
#
# Please note: without a model hub, this guide runs on a **tiny random model**.
# It shows that all steps work and that the loss falls. Its pictures are noise,
# and mean nothing. For real pictures, run it on Kaggle with a GPU (which
# has not been done yet).

# %% [markdown]
# ## Setup
#
# `keras_ether` is not on PyPI yet. `KERAS_ETHER` says where pip finds it: a
# Kaggle dataset with a checkout of its repository, which you attach to the
# notebook, or a git address, `git+https://...`. What is already there, in a
# version that will do, is not installed again. Without internet, attach the
# folder that `nox -s wheel` writes instead. Choose the backend before Keras is
# imported.

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
# On Kaggle, take `PRESET = "stable_diffusion_3_medium"` (accept its licence on
# its Kaggle page first), `SIZE = 512` and `STEPS = 600`, and let `PICTURES` be
# a folder with three to eight pictures of your subject.
#
# `PRESET = None` means the tiny random model; `PICTURES = None` means details
# of one photo of a flower, which comes with scikit-learn.

# %% tags=["parameters"]
PRESET = None  # On Kaggle: "stable_diffusion_3_medium".
PICTURES = None  # On Kaggle: a folder, "/kaggle/input/..."; None for a flower.
PROMPT = "a photo of sks flower"
SIZE = 64
STEPS = 300
LEARNING_RATE = 6e-3
GENERATION_STEPS = 20
PRETRAINING_STEPS = 300  # Of the tiny random model.

# %%
from pathlib import Path

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from sklearn.datasets import load_sample_image

import keras_ether

keras.utils.set_random_seed(0)
print("Keras", keras.__version__, "on", keras.backend.backend())

# %% [markdown]
# ## The subject
#
# A few pictures, as numbers from -1 to 1.

# %%


def squares(photo, corners, side):
    """Square details of a photo, resized."""
    details = [photo[y : y + side, x : x + side] for y, x in corners]
    resized = ops.image.resize(
        np.stack(details).astype("float32"), (SIZE, SIZE), antialias=True
    )
    return np.array(resized) / 127.5 - 1


def pictures_of(folder):
    """The pictures in a folder, cut to squares."""
    loaded = [
        keras.utils.load_img(
            path, target_size=(SIZE, SIZE), keep_aspect_ratio=True
        )
        for path in sorted(Path(folder).iterdir())
    ]
    return np.stack(loaded).astype("float32") / 127.5 - 1


def show(pictures, titles, heading):
    """Draws pictures with numbers from -1 to 1 side by side."""
    size = (0.5 + 1.6 * len(pictures), 2.4)
    figure, row = plt.subplots(
        1, len(pictures), figsize=size, layout="constrained"
    )
    figure.suptitle(heading)
    for axes, picture, title in zip(row, pictures, titles, strict=True):
        axes.imshow((picture + 1) / 2)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    plt.show()


if PICTURES is None:
    corners = [(20, 130), (40, 150), (20, 170), (60, 140), (50, 180)]
    subject = squares(load_sample_image("flower.jpg"), corners, 340)
else:
    subject = pictures_of(PICTURES)
show(
    subject,
    [f"picture {number + 1}" for number in range(len(subject))],
    "The subject",
)

# %% [markdown]
# ## The model
#
# Stable Diffusion 3 consists of text encoders, an autoencoder between pictures
# and *latents* (eight times smaller, with 16 channels), and the *diffuser*, a
# transformer over both. Only the diffuser is adapted.
#
# The tiny model has all of these parts, with random weights, and the alphabet
# for a vocabulary. (KerasHub exports no class for the autoencoder alone, hence
# the private import.)

# %%


def tiny_stable_diffusion():
    """A StableDiffusion3TextToImage small enough for a processor."""
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["of</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}

    def preprocessor(pad_with_end_token):
        return keras_hub.models.CLIPPreprocessor(
            keras_hub.models.CLIPTokenizer(
                vocabulary,
                merges=["o f</w>"],
                pad_with_end_token=pad_with_end_token,
            )
        )

    def text_encoder(name):
        return keras_hub.models.CLIPTextEncoder(
            vocabulary_size=len(vocabulary),
            embedding_dim=16,
            hidden_dim=16,
            num_layers=2,
            num_heads=2,
            intermediate_dim=32,
            intermediate_output_index=-2,
            name=name,
        )

    backbone = keras_hub.models.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=64,
        mmdit_num_layers=3,
        mmdit_num_heads=4,
        mmdit_position_size=16,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=VAEBackbone(
            [32, 32, 32, 32],
            [1, 1, 1, 1],
            [32, 32, 32, 32],
            [1, 1, 1, 1],
            sampler_method="mode",
            name="vae",
        ),
        clip_l=text_encoder("clip_l"),
        clip_g=text_encoder("clip_g"),
        image_shape=(SIZE, SIZE, 3),
    )
    return keras_hub.models.StableDiffusion3TextToImage(
        backbone,
        keras_hub.models.StableDiffusion3TextToImagePreprocessor(
            preprocessor(True), preprocessor(False)
        ),
    )


def load_model():
    """The pretrained model, in half the memory, or the tiny one."""
    if PRESET is None:
        return tiny_stable_diffusion()
    models = keras_hub.models
    return models.StableDiffusion3TextToImage(
        models.StableDiffusion3Backbone.from_preset(
            PRESET, image_shape=(SIZE, SIZE, 3), dtype="bfloat16"
        ),
        models.StableDiffusion3TextToImagePreprocessor.from_preset(PRESET),
    )


model = load_model()
print(f"{model.count_params():,} parameters in the model,", end=" ")
print(f"{model.backbone.diffuser.count_params():,} of them in the diffuser")

# %% [markdown]
# ## Encode once
#
# Neither the text encoders nor the autoencoder are trained. So each picture
# and its prompt are encoded once, and training needs the diffuser only.

# %%


def encode(pictures, prompt):
    """What the diffuser is trained on: latents, and the prompt's embeddings."""
    tokens = model.preprocessor.generate_preprocess([prompt])
    context, _, pooled, _ = model.backbone.encode_text_step(tokens, tokens)
    latents = model.backbone.encode_image_step(pictures)
    encoded = {
        "latent": latents,
        "context": ops.repeat(context, len(pictures), axis=0),
        "pooled_projection": ops.repeat(pooled, len(pictures), axis=0),
    }
    return {
        name: ops.convert_to_numpy(ops.cast(value, "float32"))
        for name, value in encoded.items()
    }


encoded = encode(subject, PROMPT)
for name, value in encoded.items():
    print(f"{name:>17}: {value.shape}")

# %% [markdown]
# ## The training step
#
# Flow matching draws a straight line from each picture's latents `x` to random
# noise `ε`. At the time `t` between 0 and 1 one is at
#
# $$ x_t = (1 - t)\,x + t\,\varepsilon $$
#
# and moves with the velocity `ε − x`. The diffuser is shown `x_t`, the time
# and the prompt, and predicts this velocity. Its mean squared error is the
# loss. (`generate` walks back along these lines, from noise to a picture.)
#
# Stable Diffusion 3 draws most times from the middle, where the task is
# hardest: a normal random number, squeezed into (0, 1) by a sigmoid.

# %%


class FlowMatching(keras.Model):
    """Trains a diffuser to predict velocities from pictures to noise."""

    def __init__(self, diffuser):
        super().__init__()
        self.diffuser = diffuser
        self.seed = keras.random.SeedGenerator(0)

    def call(self, inputs):
        latents = inputs["latent"]
        batch = ops.shape(latents)[0]
        noise = keras.random.normal(ops.shape(latents), seed=self.seed)
        time = ops.sigmoid(keras.random.normal((batch, 1), seed=self.seed))
        share = time[:, :, None, None]
        velocity = self.diffuser(
            {
                **inputs,
                "latent": (1 - share) * latents + share * noise,
                "timestep": 1000 * time,
            }
        )
        # What the prediction misses.
        return ops.cast(velocity, "float32") - (noise - latents)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean(ops.square(y_pred))


def train(steps, rate, data):
    """Takes steps of one picture each, and returns their losses."""
    trainer = FlowMatching(model.backbone.diffuser)
    trainer.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        )
    )
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(logs["loss"])
    )
    pictures = len(data["latent"])
    trainer.fit(
        data,
        batch_size=1,
        epochs=-(-steps // pictures),
        verbose=0,
        callbacks=[record],
    )
    return losses


def loss_of(data, repeats=40):
    """The loss, for the same noise and times whenever it is asked for."""
    trainer = FlowMatching(model.backbone.diffuser)
    trainer.compile()
    many = {
        name: np.repeat(value, repeats, axis=0) for name, value in data.items()
    }
    return trainer.evaluate(many, batch_size=4, verbose=0)


# %% [markdown]
# A random diffuser has nothing that could be adapted. So the tiny one is
# trained first, in full, by the same step, on details of another photo. For a
# preset, Stability AI has done that.

# %%
if PRESET is None:
    corners = [(y, x) for y in (0, 40, 80) for x in (0, 100, 200, 300)]
    others = squares(load_sample_image("china.jpg"), corners, 340)
    train(PRETRAINING_STEPS, 1e-3, encode(others, "a photo of china"))

# %% [markdown]
# ## Before
#
# `seed` starts each picture from the same noise, so that pictures can be
# compared.

# %%


def generate():
    """A picture for the prompt, in numbers from -1 to 1."""
    picture = model.generate(
        PROMPT, num_steps=GENERATION_STEPS, guidance_scale=4.0, seed=0
    )
    return picture / 127.5 - 1


loss_before = loss_of(encoded)
picture_before = generate()
print(f"Loss on the subject: {loss_before:.3f}")

# %% [markdown]
# ## Put ETHER+ into it
#
# As in the paper, into the projections of every attention: query, key and
# value, which are one kernel here, and the output's. `targets` takes a regular
# expression for the layers' paths, as `keras_ether.plan(model)` prints them.

# %%
keras_ether.apply(
    model,
    method="ether+",
    targets=r".*/attention_(qkv|proj)2?",
    rank_blocks=4,
    seed=0,
)
trained = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
print(f"{trained:,} parameters train: {trained / model.count_params():.2%}")
print(f"Loss on the subject: {loss_of(encoded):.3f}")

# %% [markdown]
# ## Train

# %%
losses = train(STEPS, LEARNING_RATE, encoded)
loss_after = loss_of(encoded)
print(f"Loss on the subject: {loss_before:.3f} before, {loss_after:.3f} after")

# %%
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
steps = len(subject) * np.arange(1, len(losses) + 1)
axes.plot(steps, losses, color="#8dbfbc", label="of the last steps")
for loss, label, style in (
    (loss_before, "of the subject, before", ":"),
    (loss_after, "of the subject, after", "-"),
):
    axes.axhline(loss, color="black", linestyle=style, linewidth=1, label=label)
axes.set_title("Loss while personalising")
axes.set_xlabel("steps")
axes.set_ylabel("loss")
axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## After

# %%
picture_after = generate()
show([picture_before, picture_after], ["before", "after"], f"“{PROMPT}”")

# %% [markdown]
# Made by the tiny random model, these are noise, as was said: an autoencoder
# with random weights can't draw. Made by Stable Diffusion 3, the left one
# shows some flower, and the right one should show the subject.
#
# ## Keep it, switch it off, merge it

# %%
keras_ether.save_adapter(model, "sks_flower.ether.safetensors")
adapter_bytes = os.path.getsize("sks_flower.ether.safetensors")
print(f"The adapter file has {adapter_bytes / 1e3:.0f} KB.")


def largest_difference(one, other):
    """In shades out of 255."""
    return int(np.abs(one - other).max() * 127.5 + 0.5)


with keras_ether.disabled(model):
    difference_disabled = largest_difference(generate(), picture_before)
keras_ether.merge(model)
difference_merged = largest_difference(generate(), picture_after)
print("Switched off, against before:", difference_disabled, "shades of 255")
print("Merged, against after:       ", difference_merged, "shades of 255")

# %% [markdown]
# Several subjects are several small files over one model: load the pretrained
# model once, and `keras_ether.load_adapter` puts a subject into it.
#
# ## Where to go from here
#
# - More steps make the subject more alike, and the model less free. Save an
#   adapter every hundred steps and look at the pictures.
# - DreamBooth also trains on pictures of other flowers, made by the model
#   itself beforehand, so that it does not take every flower for yours.
# - The paper trains 1,400 steps at 6e-3, on Stable Diffusion 1.5.
