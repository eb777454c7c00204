"""From a semantic map to a picture, as ControlNet does it (table 3).

A small encoder of 8 convolutions adds what the map says to the noisy latents,
and the diffuser learns to follow it. The paper adapts attention and
feed-forward layers with a rate of 1e-3, trains the encoder with at most 1e-4,
and takes batches of 10 from ADE20K. On a GPU:

    python examples/recipes/semantic_map.py \\
        --preset stable_diffusion_3_medium --images ade20k/images \\
        --maps ade20k/maps --prompt "a photo" --steps 20000

The pictures and their maps have the same names, whatever their endings. Without
options it takes a tiny random model, and scikit-learn's digits with their
outlines as maps; what such a model draws is noise.

Other than in the paper: Stable Diffusion 3 instead of 1.5, trained by flow
matching, and one prompt for all pictures. The encoder's widths are this
recipe's own, with 3.1 million numbers as there. The number of steps is yours to
choose, and segmentation of what is drawn (mIoU) is not measured.
"""

from dataclasses import dataclass

import common
import diffusion
import keras
import numpy as np
from keras import layers

ATTENTION_AND_FEED_FORWARD = (
    r".*/joint_block_\d+/.*/(attention_(qkv|proj)2?|mlp/dense[12])"
)
LEARNING_RATES = {"ether": 1e-3, "ether+": 1e-3}
ENCODER_RATE = 1e-4
STEPS, BATCH_SIZE = 10_000, 10
TINY_STEPS, TINY_SAMPLES = 60, 100
# Pictures that are never trained on, and how many of their maps are drawn.
TEST_PICTURES, DRAWN = 16, 2
WIDTHS = (96, 96, 192, 192, 288, 288, 448)
TINY_WIDTHS = (8, 8, 16, 16, 24, 24, 32)
# A latent picture has an eighth of a picture's sides.
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


@dataclass(frozen=True)
class Result:
    """What a run has measured and written.

    `loss_before` and `loss_after` are those of pictures not trained on, with
    the same noise.
    """

    model: keras.Model
    encoder: keras.Model
    trained: int
    loss_before: float
    loss_after: float
    before: list
    after: list


class AdamOfTwoRates(keras.optimizers.Adam):
    """Adam that trains some variables with a rate of their own.

    Args:
        learning_rate: Float, the rate of all others.
        slow: List of variables.
        slow_rate: Float, their rate.
    """

    def __init__(self, learning_rate, slow, slow_rate):
        super().__init__(learning_rate)
        # TensorFlow's own variables are what `update_step` gets there. In a
        # function, since Keras takes all that an optimizer has for its state.
        slow = (*slow, *(variable.value for variable in slow))
        self.is_slow = lambda variable: any(variable is one for one in slow)
        self.share = slow_rate / learning_rate

    def update_step(self, gradient, variable, learning_rate):
        # A smaller gradient would do nothing: Adam divides by its size.
        if self.is_slow(variable):
            learning_rate = learning_rate * self.share
        super().update_step(gradient, variable, learning_rate)


def main(arguments=None):
    """Runs the recipe and returns a `Result`."""
    options = read_options(arguments)
    keras.utils.set_random_seed(options.seed)
    diffusion.make_folder(options.output)
    maps, pictures = read_pairs(options)
    print(f"{len(pictures):,} pictures with maps, {TEST_PICTURES} to test.")

    task = diffusion.load(options)
    encoder = make_encoder(
        maps.shape[1:], task.backbone.latent_channels, options.widths
    )
    prompt = diffusion.embed(task, options.prompt)
    latents = diffusion.encode(task, pictures)
    test, train = (
        {"maps": maps[part], "latents": latents[part]}
        for part in (slice(TEST_PICTURES), slice(TEST_PICTURES, None))
    )
    before = draw(task, prompt, encoder, test, options, "before")
    loss_before = diffusion.measure(task.backbone, prompt, test, encoder)

    report = common.adapt(task, options, ATTENTION_AND_FEED_FORWARD)
    print(f"The encoder has {encoder.count_params():,} numbers.")
    model = diffusion.FlowMatching(
        task.backbone, prompt, encoder, seed=options.seed
    )
    model.compile(
        AdamOfTwoRates(
            options.learning_rate,
            slow=encoder.trainable_variables,
            slow_rate=options.encoder_rate,
        )
    )
    diffusion.train(model, train, options)

    loss_after = diffusion.measure(task.backbone, prompt, test, encoder)
    after = draw(task, prompt, encoder, test, options, "after")
    print(f"Loss: {loss_before:.4f} before, {loss_after:.4f} after.")
    print(f"Pictures: {', '.join(map(str, [*before, *after]))}.")
    return Result(
        task, encoder, report.trainable, loss_before, loss_after, before, after
    )


def make_encoder(map_shape, channels, widths):
    """Eight convolutions from a map to what is added to the latents.

    The last one starts at zero, so that the diffuser sees at first what it saw
    in its pretraining.
    """
    inputs = keras.Input(map_shape, dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for width, strides in zip(widths, STRIDES[:-1], strict=True):
        x = layers.Conv2D(width, 3, strides, "same", activation="silu")(x)
    outputs = layers.Conv2D(
        channels, 3, STRIDES[-1], "same", kernel_initializer="zeros"
    )(x)
    return keras.Model(inputs, outputs, name="encoder")


def read_pairs(options):
    """Maps and pictures, bytes."""
    if options.images is None:
        pictures, _ = common.digits(options.size)
        pictures = pictures[: options.samples or TINY_SAMPLES]
        maps = np.where(pictures > 127, 255, 0).astype("uint8")
    else:
        names, pictures = diffusion.read_pictures(options.images, options.size)
        others, maps = diffusion.read_pictures(options.maps, options.size)
        alone = sorted(set(names) ^ set(others))
        if alone:
            raise SystemExit(
                f"'{options.images}' and '{options.maps}' must hold the same "
                f"names; only one of them has '{alone[0]}'."
            )
        maps, pictures = maps[: options.samples], pictures[: options.samples]
    if len(pictures) <= TEST_PICTURES:
        raise SystemExit(
            f"more than {TEST_PICTURES} pictures are needed, to test with "
            f"these; there are {len(pictures)}."
        )
    return maps, pictures


def draw(task, prompt, encoder, test, options, name):
    """Draws pictures of some maps from the same noise, and saves them."""
    sampler = diffusion.Sampler(
        task.backbone, prompt, encoder, options.sampling_steps
    )
    latents = test["latents"][:DRAWN]
    noise = np.random.default_rng(options.seed).normal(size=latents.shape)
    pictures = sampler.predict(
        {"noise": noise.astype("float32"), "maps": test["maps"][:DRAWN]},
        verbose=0,
    )
    pictures = np.clip(127.5 * (pictures + 1.0), 0, 255)
    return diffusion.save(pictures.round(), options.output, name)


def read_options(arguments):
    parser = diffusion.make_parser(__doc__, "ether_semantic_map")
    add = parser.add_argument
    add("--maps", help="folder of maps (default: outlines of digits)")
    add("--prompt", default="a photo", help=common.DEFAULT)
    add(
        "--encoder-rate",
        type=common.positive_float,
        default=ENCODER_RATE,
        help=f"the encoder's learning rate ({common.DEFAULT})",
    )
    options = parser.parse_args(arguments)
    if (options.images is None) != (options.maps is None):
        raise SystemExit("--images and --maps belong together.")
    options.learning_rate = (
        options.learning_rate or LEARNING_RATES[options.method]
    )
    diffusion.fill_in(
        options,
        paper={"steps": STEPS, "batch_size": BATCH_SIZE, "widths": WIDTHS},
        tiny={
            "steps": TINY_STEPS,
            "batch_size": BATCH_SIZE,
            "widths": TINY_WIDTHS,
        },
    )
    return options


if __name__ == "__main__":
    main()
