"""Subject-driven generation, as DreamBooth does it (table 2).

From a few pictures of a subject a model learns to show it elsewhere. The paper
adapts query, key, value and projection of every attention in the diffuser, for
1,400 iterations with batches of 1 and a rate of 6e-3. On a GPU:

    python examples/recipes/subject_driven.py \\
        --preset stable_diffusion_3_medium --images my_dog/ \\
        --prompt "a photo of sks dog" --sample-prompt "a sks dog on the moon"

Pictures before and after training are written to `--output`. Without options
it takes a tiny random model and handwritten zeros of scikit-learn; what such a
model draws is noise.

Other than in the paper: Stable Diffusion 3 instead of 1.5, so the diffuser is
a transformer that is trained by flow matching, and query, key and value are one
kernel, with one vector for ETHER. There are no pictures of the subject's class
to preserve what the model knew of it, and nothing is measured by DINO or CLIP.
"""

from dataclasses import dataclass

import common
import diffusion
import keras

ATTENTION = r".*/joint_block_\d+/.*/attention_(qkv|proj)2?"
LEARNING_RATES = {"ether": 6e-3, "ether+": 6e-3}
STEPS, BATCH_SIZE = 1400, 1
TINY_STEPS = 60
DIGIT, DIGITS = 0, 4


@dataclass(frozen=True)
class Result:
    """What a run has measured and written.

    `loss_before` and `loss_after` are those of the pictures given, with the
    same noise.
    """

    model: keras.Model
    trained: int
    loss_before: float
    loss_after: float
    before: list
    after: list


def main(arguments=None):
    """Runs the recipe and returns a `Result`."""
    options = read_options(arguments)
    keras.utils.set_random_seed(options.seed)
    diffusion.make_folder(options.output)
    pictures = read_pictures(options)
    print(f"{len(pictures)} pictures of the subject: '{options.prompt}'.")

    task = diffusion.load(options)
    before = generate(task, options, "before")
    prompt = diffusion.embed(task, options.prompt)
    inputs = {"latents": diffusion.encode(task, pictures)}
    loss_before = diffusion.measure(task.backbone, prompt, inputs)

    report = common.adapt(task, options, ATTENTION)
    model = diffusion.FlowMatching(task.backbone, prompt, seed=options.seed)
    model.compile(keras.optimizers.Adam(options.learning_rate))
    diffusion.train(model, inputs, options)

    loss_after = diffusion.measure(task.backbone, prompt, inputs)
    after = generate(task, options, "after")
    print(f"Loss: {loss_before:.4f} before, {loss_after:.4f} after.")
    print(f"Pictures: {', '.join(map(str, [*before, *after]))}.")
    return Result(
        task, report.trainable, loss_before, loss_after, before, after
    )


def read_pictures(options):
    """The subject's pictures, bytes."""
    if options.images is not None:
        _, pictures = diffusion.read_pictures(options.images, options.size)
    else:
        pictures, labels = common.digits(options.size)
        pictures = pictures[labels == DIGIT][:DIGITS]
    return pictures[: options.samples]


def generate(task, options, name):
    """Draws a picture from the same noise each time, and saves it."""
    pictures = task.generate(
        [options.sample_prompt],
        num_steps=options.sampling_steps,
        guidance_scale=diffusion.GUIDANCE_SCALE,
        seed=options.seed,
    )
    return diffusion.save(pictures, options.output, name)


def read_options(arguments):
    parser = diffusion.make_parser(__doc__, "ether_subject_driven")
    add = parser.add_argument
    add("--prompt", default="a photo of sks", help=common.DEFAULT)
    add("--sample-prompt", help="of what is drawn (default: the same)")
    options = parser.parse_args(arguments)
    options.sample_prompt = options.sample_prompt or options.prompt
    options.learning_rate = (
        options.learning_rate or LEARNING_RATES[options.method]
    )
    diffusion.fill_in(
        options,
        paper={"steps": STEPS, "batch_size": BATCH_SIZE},
        tiny={"steps": TINY_STEPS, "batch_size": BATCH_SIZE},
    )
    return options


if __name__ == "__main__":
    main()
