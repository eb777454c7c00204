"""Adapters over an int4 base, served with it or merged into bfloat16.

Rounded to int4, the frozen weights of a language model take a quarter of the
memory of bfloat16. This recipe

1. measures the loss of the pretrained model, and of its int4 copy;
2. trains adapters over each;
3. saves the adapters of the int4 copy. A server loads them over an int4 copy;
4. merges the same file into the bfloat16 model, which then is an ordinary
   model.

All losses are those of the next token, on texts that were not trained on.

    python examples/recipes/quantized_base.py
    python examples/recipes/quantized_base.py --preset gemma_2b_en \\
        --data texts.txt --samples 5000 --length 256

`--data` is a file with a text in each line. Without options the recipe takes
film reviews and SmolLM2-135M-Instruct, from a Python package (`pip install
gguf` reads it).
"""

import math
import re
import tempfile
import warnings
from pathlib import Path

import common
import keras
import keras_hub
from instruction_tuning import smollm2

import keras_ether
from examples.language_models import masked

# The parts of the data that are measured and not trained on.
TEST_TEXTS = 192
TRAIN_TEXTS = 192
BATCH_SIZE = 8


def main(arguments=None):
    """Runs the recipe and returns a `common.Result`.

    `before` and `after` are the losses of the "base" and of its "int4" copy,
    and `after` has that of the "merged" model.
    """
    options = read_options(arguments)
    test, texts = read_texts(options)
    print(f"{len(texts):,} texts to train on, {len(test):,} to measure.")

    # Tokens and their weights, once for all models.
    preprocessor = common.load(
        keras_hub.models.CausalLMPreprocessor,
        options.preset or smollm2(),
        sequence_length=options.length,
    )
    test = masked(preprocessor, [""] * len(test), test)
    data = masked(preprocessor, [""] * len(texts), texts)

    model = load(options)
    before = {"base": measure(options.dtype, model, test)}
    train(model, data, options)
    after = {"base": measure(f"{options.dtype}, tuned", model, test)}

    model = load(options)
    quantize(model)
    before["int4"] = measure("int4", model, test)
    losses = train(model, data, options)
    after["int4"] = measure("int4, tuned", model, test)
    trained = keras_ether.summary(model, print_fn=str).trainable

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tuned.ether.safetensors"
        keras_ether.save_adapter(model, file)
        model = load(options)
        # The base before rounding is not the one of the training.
        keras_ether.load_adapter(model, file, check_base=False)
    keras_ether.merge(model)
    after["merged"] = measure(f"{options.dtype}, merged", model, test)
    return common.Result(model, trained, losses, before, after)


def read_texts(options):
    """Texts to measure, and texts to train on."""
    if options.data is None:
        texts = common.film_reviews()["text"].tolist()
    else:
        try:
            lines = Path(options.data).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise SystemExit(
                f"can't read '{options.data}': {common.reason(error)}"
            ) from error
        texts = [line for line in lines if line.strip()]
        if len(texts) <= TEST_TEXTS:
            raise SystemExit(
                f"'{options.data}' must hold more than {TEST_TEXTS} texts. "
                f"Received: {len(texts)}"
            )
    stop = TEST_TEXTS + (options.samples or TRAIN_TEXTS)
    return texts[:TEST_TEXTS], texts[TEST_TEXTS:stop]


def load(options):
    """The pretrained model, which takes tokens."""
    model = common.load(
        keras_hub.models.CausalLM,
        options.preset or smollm2(),
        dtype=options.dtype,
    )
    model.preprocessor = None
    return model


def quantize(model):
    """Rounds the kernels and the embedding tables of a model to int4."""
    with warnings.catch_warnings():
        # Keras names each kind of layer that has nothing to round.
        warnings.filterwarnings("ignore", ".*does not have a `quantize`")
        model.backbone.quantize("int4")


def compile_model(model, learning_rate):
    """A changed model must be compiled again."""
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics=[],
    )


def train(model, data, options):
    """Adapts and trains a model, and returns its losses by epoch."""
    keras_ether.apply(model, seed=options.seed)
    compile_model(model, options.learning_rate)
    history = model.fit(
        common.batches(data, options.batch_size, options.seed),
        epochs=options.epochs,
        shuffle=False,
        verbose=2,
    )
    return history.history["loss"]


def measure(name, model, data):
    """Prints and returns the loss of a model, beside its weights' memory."""
    compile_model(model, 0.0)
    x, y, weights = data
    loss = model.evaluate(
        x, y, sample_weight=weights, batch_size=BATCH_SIZE, verbose=0
    )
    size = sum(bytes_of(weight) for weight in model.weights) / 2**20
    print(f"{name}: {loss:.3f} nats a token, weights of {size:,.0f} MiB")
    return loss


def bytes_of(weight):
    # Two entries of int4 are packed into one of int8.
    bits = int(re.sub(r"\D", "", keras.backend.standardize_dtype(weight.dtype)))
    return math.prod(weight.shape) * bits // 8


def read_options(arguments):
    parser = common.make_plain_parser(__doc__, learning_rate=1e-3)
    add = parser.add_argument
    add("--data", help="a file of texts, one a line (default: film reviews)")
    add("--epochs", type=common.positive_int, default=2, help=common.DEFAULT)
    add(
        "--batch-size",
        type=common.positive_int,
        default=BATCH_SIZE,
        help=common.DEFAULT,
    )
    add("--length", type=common.positive_int, default=40, help=common.DEFAULT)
    parser.set_defaults(dtype="bfloat16")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
