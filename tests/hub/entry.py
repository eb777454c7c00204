"""What a table says about a backbone, and the inputs that its kind takes."""

from collections.abc import Callable
from dataclasses import dataclass

import keras_hub
import numpy as np
from keras import ops

LENGTH = 6
VOCABULARY = 20
# The arguments that most classes have.
DECODER = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 1,
    "hidden_dim": 8,
    "intermediate_dim": 16,
}
HEADS = {"num_heads": 2}
ENCODER = DECODER | HEADS
POSITIONS = {"max_sequence_length": LENGTH}


def without(config, *names):
    return {key: value for key, value in config.items() if key not in names}


def numbers(*shape, batch=2):
    """Random numbers in `[0, 1)`, which serve as pixels too."""
    rng = np.random.default_rng(0)
    return rng.random((batch, *shape)).astype("float32")


def token_ids(length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, VOCABULARY, (2, length)).astype("int32")


def mask(length=LENGTH, dtype="int32"):
    """A padding mask that leaves out one token."""
    ones = np.ones((2, length), dtype)
    ones[1, -1] = 0
    return ones


def tokens(length=LENGTH):
    return {"token_ids": token_ids(length), "padding_mask": mask(length)}


def segments():
    return tokens() | {"segment_ids": np.zeros((2, LENGTH), "int32")}


def token_pairs():
    """What encoder-decoders take."""
    return {
        "encoder_token_ids": token_ids(),
        "encoder_padding_mask": mask(),
        "decoder_token_ids": token_ids(LENGTH - 1, seed=1),
        "decoder_padding_mask": mask(LENGTH - 1),
    }


def images(size, width=None):
    return numbers(size, width or size, 3)


@dataclass(frozen=True)
class Entry:
    """A tiny random backbone of one class.

    Args:
        config: Arguments of the class, or a function that gives them: parts
            that are models themselves are built in it.
        inputs: Function that gives one batch.
        targets: What `keras_ether.apply` is told to adapt.
        exclude: What of it not.
        quick: Whether its tests run by default, not only nightly.
        eager: Whether it computes with the value of an input, which JAX can't
            compile.
        learns: Whether a random one has a gradient for every vector.
        torch_needs: Package that KerasHub imports for it on PyTorch only.
        exact_on_jax: Whether ETHER+ starts at the base model to the bit there,
            compiled. Uncompiled all do; XLA may round elsewhere when it fuses
            other operations.
    """

    config: dict | Callable
    inputs: Callable = tokens
    targets: str = "all-linear"
    exclude: str | None = None
    quick: bool = False
    eager: bool = False
    learns: bool = True
    torch_needs: str | None = None
    exact_on_jax: bool = True

    @property
    def rank_blocks(self):
        """Two, but one for the three channels of an image."""
        return 1 if self.targets == "all" else 2


def build(name, entry):
    """The backbone that an entry describes, with weights of a trained one."""
    config = entry.config() if callable(entry.config) else entry.config
    return randomize(getattr(keras_hub.models, name)(**config))


def randomize(model):
    """Gives a model weights that are as large as trained ones.

    Many start as zeros or as numbers so small that a training step would
    change an output, or an attention score, by less than float32 resolves.
    """
    rng = np.random.default_rng(0)
    for variable in model.trainable_weights:
        noise = rng.normal(size=variable.shape)
        if len(variable.shape) > 1:
            variable.assign(0.3 * noise)
        else:
            variable.assign(ops.convert_to_numpy(variable) + 0.1 * noise)
    return model
