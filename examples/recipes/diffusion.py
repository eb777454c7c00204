"""What the two recipes with Stable Diffusion 3 share.

Stable Diffusion 3 is trained by flow matching (Esser et al., 2024, section 2):
a latent picture `x` is mixed with noise `n` to `(1 − σ) x + σ n`, and the
diffuser learns the velocity `n − x`. KerasHub has no `fit` for it.
"""

from pathlib import Path

import common
import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras import ops

PICTURES = (".jpeg", ".jpg", ".png")
GUIDANCE_SCALE = 7.0
# Of the noise with which losses are compared.
MEASURE_SEED = 1
TINY_SIZE, TINY_SAMPLING_STEPS = 32, 4


class FlowMatching(keras.Model):
    """Trains the diffuser of a Stable Diffusion 3 by `fit`.

    Its inputs are a dictionary of `latents` and, with an encoder, `maps`.

    Args:
        backbone: A `keras_hub.models.StableDiffusion3Backbone`.
        prompt: The prompt of all pictures, as `embed` gives it.
        encoder: Model whose output is added to the noisy latents. Optional.
        seed: Integer, of the noise.
    """

    def __init__(self, backbone, prompt, encoder=None, seed=0):
        super().__init__()
        self.diffuser = backbone.diffuser
        self.encoder = encoder
        self.shift = backbone.shift
        self.timesteps = backbone.num_train_timesteps
        self.context, _, self.pooled, _ = prompt
        self.seeds = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=None):
        """The error of the velocity that the diffuser finds."""
        latents = ops.cast(inputs["latents"], "float32")
        batch = ops.shape(latents)[0]
        noise = keras.random.normal(ops.shape(latents), seed=self.seeds)
        sigma = self.sigma(batch)
        share = ops.reshape(sigma, (-1, 1, 1, 1))
        noisy = (1.0 - share) * latents + share * noise
        if self.encoder is not None:
            noisy = noisy + self.encoder(inputs["maps"])
        velocity = self.diffuser(
            {
                "latent": noisy,
                "context": ops.repeat(self.context, batch, axis=0),
                "pooled_projection": ops.repeat(self.pooled, batch, axis=0),
                "timestep": sigma * self.timesteps,
            },
            training=training,
        )
        return ops.cast(velocity, "float32") - (noise - latents)

    def sigma(self, batch):
        """Shares of noise: logit-normal, and shifted as the scheduler's are."""
        sigma = ops.sigmoid(keras.random.normal((batch,), seed=self.seeds))
        return self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        return ops.mean(ops.square(y_pred))


class Sampler(keras.Model):
    """Makes pictures of noise and maps by `predict`.

    The encoder's output is added to what the diffuser sees and not to what is
    made, so it is taken off again after each step.

    Args:
        backbone: A `keras_hub.models.StableDiffusion3Backbone`.
        prompt: The prompt, as `embed` gives it.
        encoder: Model from maps to what is added to the latents.
        steps: Integer, number of denoising steps.
    """

    def __init__(self, backbone, prompt, encoder, steps):
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.prompt = prompt
        self.steps = steps
        backbone.configure_scheduler(steps)
        self.built = True

    def call(self, inputs):
        latents = inputs["noise"]
        batch = ops.shape(latents)[0]
        signal = ops.cast(self.encoder(inputs["maps"]), "float32")
        prompt = [ops.repeat(part, batch, axis=0) for part in self.prompt]

        def denoise(step, latents):
            seen = self.backbone.denoise_step(
                latents + signal, prompt, step, self.steps, GUIDANCE_SCALE
            )
            return seen - signal

        latents = ops.fori_loop(0, self.steps, denoise, latents)
        return self.backbone.decode_step(latents)


def load(options):
    """The pretrained text-to-image model, or a tiny random one."""
    if options.preset is None:
        task = tiny_model(options.size, options.dtype)
    else:
        task = common.load(
            keras_hub.models.StableDiffusion3TextToImage,
            options.preset,
            image_shape=(options.size, options.size, 3),
            dtype=options.dtype,
        )
    # It has compiled itself, with a rate for full fine-tuning.
    task.compile(keras.optimizers.Adam(options.learning_rate))
    return task


def tiny_model(size, dtype=None):
    """A random Stable Diffusion 3 whose tokenizer reads letters."""
    # Not among KerasHub's public names, and nothing else makes a tiny one.
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "th",
        "the</w>",
    ]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    clip_l, clip_g = (
        keras_hub.models.CLIPPreprocessor(
            keras_hub.models.CLIPTokenizer(
                vocabulary, ["t h", "th e</w>"], pad_with_end_token=pad
            )
        )
        for pad in (True, False)
    )
    # Three of them halve the sides of a picture.
    filters, blocks = [32] * 4, [1] * 4
    backbone = keras_hub.models.StableDiffusion3Backbone(
        mmdit_patch_size=2,
        mmdit_hidden_dim=32,
        mmdit_num_layers=2,
        mmdit_num_heads=2,
        mmdit_position_size=8,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=VAEBackbone(
            filters,
            blocks,
            filters,
            blocks,
            sampler_method="mode",
            dtype=dtype,
            name="vae",
        ),
        clip_l=tiny_text_encoder("clip_l", len(tokens), dtype),
        clip_g=tiny_text_encoder("clip_g", len(tokens), dtype),
        image_shape=(size, size, 3),
        dtype=dtype,
    )
    preprocessor = keras_hub.models.StableDiffusion3TextToImagePreprocessor(
        clip_l, clip_g
    )
    return keras_hub.models.StableDiffusion3TextToImage(backbone, preprocessor)


def tiny_text_encoder(name, vocabulary_size, dtype):
    return keras_hub.models.CLIPTextEncoder(
        vocabulary_size=vocabulary_size,
        embedding_dim=16,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        intermediate_dim=32,
        intermediate_output_index=-2,
        dtype=dtype,
        name=name,
    )


def embed(task, prompt):
    """What the diffuser is told by a prompt and by none, as arrays."""
    ids, none = (
        {
            name: ops.convert_to_tensor(ops.convert_to_numpy(value))
            for name, value in task.preprocessor.generate_preprocess(
                [text]
            ).items()
        }
        for text in (prompt, "")
    )
    return [
        ops.convert_to_numpy(part)
        for part in task.backbone.encode_text_step(ids, none)
    ]


def encode(task, pictures, batch_size=4):
    """Latents of pictures, which are arrays of bytes."""
    latents = [
        ops.convert_to_numpy(
            task.backbone.encode_image_step(
                pictures[start : start + batch_size] / np.float32(127.5) - 1.0
            )
        )
        for start in range(0, len(pictures), batch_size)
    ]
    return np.concatenate(latents).astype("float32")


def train(model, inputs, options):
    """Fits a `FlowMatching` for some steps."""
    model.fit(
        common.batches(inputs, options.batch_size, options.seed, endless=True),
        steps_per_epoch=options.steps,
        shuffle=False,
    )


def measure(backbone, prompt, inputs, encoder=None):
    """The mean loss on some pictures, with the same noise at each call."""
    model = FlowMatching(backbone, prompt, encoder, seed=MEASURE_SEED)
    model.compile()
    # Each picture with four shares of noise.
    dataset = tf.data.Dataset.from_tensor_slices(inputs).repeat(4).batch(8)
    return float(model.evaluate(dataset, verbose=0))


def read_pictures(folder, size):
    """Names and pictures of a folder, `(n, size, size, 3)` of bytes."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SystemExit(f"'{folder}' is no folder with pictures.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not paths:
        raise SystemExit(f"'{folder}' has no picture ({', '.join(PICTURES)}).")
    try:
        pictures = [
            keras.utils.img_to_array(
                keras.utils.load_img(
                    path, target_size=(size, size), keep_aspect_ratio=True
                ),
                dtype="uint8",
            )
            for path in paths
        ]
    except OSError as error:
        raise SystemExit(
            f"can't read a picture: {common.reason(error)}"
        ) from error
    return [path.stem for path in paths], np.stack(pictures)


def save(pictures, folder, name):
    """Writes pictures as PNG files and returns their paths."""
    paths = [Path(folder) / f"{name}_{i}.png" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        keras.utils.save_img(path, picture, scale=False)
    return paths


def make_folder(path):
    """Makes the output folder now, so that training isn't in vain."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(
            f"can't make the folder '{path}': {common.reason(error)}"
        ) from error


def make_parser(description, output):
    """The options that both recipes have."""
    parser = common.make_parser(description, rank_blocks=4)
    add, positive_int = parser.add_argument, common.positive_int
    add("--images", help="folder of pictures (default: digits)")
    add("--steps", type=positive_int, help="of training")
    add("--batch-size", type=positive_int, help="default: the paper's")
    add("--size", type=positive_int, help="of pictures (default: 512)")
    add("--sampling-steps", type=positive_int, help="of drawing (default: 28)")
    add("--output", default=output, help=f"folder ({common.DEFAULT})")
    return parser


def fill_in(options, paper, tiny):
    """Gives options that are not set their values, for a tiny model others."""
    if options.preset is None:
        defaults = {"size": TINY_SIZE, "sampling_steps": TINY_SAMPLING_STEPS}
        defaults |= tiny
    else:
        defaults = {"size": 512, "sampling_steps": 28} | paper
    for name, value in defaults.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    if options.size % 16:
        raise SystemExit(
            f"--size must be a multiple of 16, not {options.size}."
        )
