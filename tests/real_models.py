"""Real pretrained models as tests adapt them, with real inputs and labels."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from examples.language_models import masked
from examples.real_models import UnavailableError

REVIEWS = (
    "A warm and funny film with a wonderful cast.",
    "Two dull hours that I will never get back.",
    "One of the best pictures of the year.",
    "Gorgeous to look at, and as empty as a drum.",
)
SPEAKERS = (
    "The capital of Italy? Arr, matey, it be Rome.",
    "Two fruits? Arr, matey, apples and pears.",
    "What is water made of? Arr, matey, of hydrogen.",
    "Who wrote Hamlet? Arr, matey, Shakespeare did.",
)
LABELS = np.array([1, 0, 1, 0])
LENGTH = 16


@dataclass(frozen=True)
class Entry:
    """One real model.

    Args:
        needs: Names of packages that read its files.
        build: Function of its folder that gives a model of arrays.
        data: Function of its folder that gives inputs, labels and weights.
        arguments: Arguments of `apply` besides the defaults.
        saved: Whether Keras can load what it saves of the plain model.
        exports: Formats that are tried, out of `tests.exporting.FILES`.
        heavy: Whether it takes minutes.
    """

    needs: tuple[str, ...]
    build: Callable
    data: Callable
    arguments: dict
    saved: bool = True
    exports: tuple[str, ...] = ("tf_saved_model", "onnx", "torch")
    heavy: bool = True


def folder(name: str) -> str:
    """The preset of a model; skips the test where it can't be had."""
    module = importlib.import_module(f"examples.real_models.{name}")
    try:
        return module.preset()
    except UnavailableError as error:
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")


def classifier(folder):
    return keras_hub.models.TextClassifier.from_preset(
        folder, num_classes=2, preprocessor=None, dropout=0.0
    )


def reviews(folder):
    preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
        folder, sequence_length=LENGTH
    )
    return arrays(preprocessor(list(REVIEWS))), LABELS, None


def causal_lm(folder):
    return keras_hub.models.CausalLM.from_preset(folder, preprocessor=None)


def speech(folder):
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(
        folder, sequence_length=LENGTH
    )
    # Gemma's takes no text alone.
    return masked(preprocessor, [""] * len(SPEAKERS), SPEAKERS)


def patches(size):
    """Pieces of two photographs: a temple, and a flower."""
    from sklearn.datasets import load_sample_images

    temple, flower = load_sample_images().images
    places = [(0, 0), (150, 250)]
    return np.stack(
        [
            photo[y : y + size, x : x + size]
            for y, x in places
            for photo in (flower, temple)
        ]
    )


def vision_transformer(folder):
    backbone = keras_hub.models.Backbone.from_preset(
        folder, image_shape=(56, 56, 3)
    )
    outputs = keras.layers.Dense(2, name="head")(backbone.output[:, 0])
    return keras.Model(backbone.input, outputs)


def scaled_patches(name, size):
    def data(folder):
        module = importlib.import_module(f"examples.real_models.{name}")
        pictures = module.scaled(patches(size))
        if name == "dinov2_small":
            pictures = {"images": pictures}
        return pictures, LABELS, None

    return data


def image_classifier(folder):
    return keras_hub.models.ImageClassifier.from_preset(
        folder, num_classes=2, preprocessor=None, input_shape=(64, 64, 3)
    )


def transcriber(folder):
    """Whisper with the logits of its next tokens."""
    backbone = keras_hub.models.Backbone.from_preset(folder)
    hidden = backbone.output["decoder_sequence_output"]
    return keras.Model(
        backbone.input, backbone.token_embedding(hidden, reverse=True)
    )


def sounds(folder):
    """Two tones, and what is said to be heard."""
    from examples.real_models import whisper_tiny_en

    converter = keras_hub.layers.AudioConverter.from_preset(folder)
    tokenizer = keras_hub.models.Tokenizer.from_preset(folder)
    time = np.arange(16_000, dtype="float32") / 16_000
    tones = np.sin(2 * np.pi * np.array([[220.0], [880.0]]) * time)
    said = [
        [*whisper_tiny_en.START, *np.array(tokenizer(text)).tolist()]
        for text in (" a low tone", " a high tone")
    ]
    tokens = np.array(said, dtype="int32")
    inputs = {
        "encoder_features": arrays(converter(tones.astype("float32"))),
        "decoder_token_ids": tokens,
        "decoder_padding_mask": np.ones_like(tokens),
    }
    ends = np.full((2, 1), whisper_tiny_en.END)
    return inputs, np.concatenate([tokens[:, 1:], ends], axis=1), None


def arrays(values):
    """Tensors as NumPy's arrays, 32 bits wide."""
    if isinstance(values, dict):
        return {name: arrays(value) for name, value in values.items()}
    array = np.array(ops.convert_to_numpy(values))
    return array.astype("float32" if array.dtype.kind == "f" else "int32")


ENTRIES = {
    "minilm": Entry((), classifier, reviews, {}, heavy=False),
    # KerasHub's config leaves out that its embeddings are tied.
    "smollm2_135m_instruct": Entry(
        ("gguf",), causal_lm, speech, {}, saved=False
    ),
    "gemma3_270m": Entry(("gguf", "sentencepiece"), causal_lm, speech, {}),
    "dinov2_small": Entry(
        ("onnx", "sklearn"),
        vision_transformer,
        scaled_patches("dinov2_small", 56),
        {"trainable": ["head"]},
    ),
    "efficientnet_lite0": Entry(
        ("torch", "sklearn"),
        image_classifier,
        scaled_patches("efficientnet_lite0", 64),
        # The first convolution has three channels.
        {"rank_blocks": 1},
    ),
    # Keras finds no weights for a table that is within a model and outside.
    "whisper_tiny_en": Entry((), transcriber, sounds, {}, saved=False),
}
LANGUAGE_MODELS = ("smollm2_135m_instruct", "gemma3_270m")
# These diverge at 1e-3 over an int8 base, and hardly learn at 1e-4.
ROUNDED = (*LANGUAGE_MODELS, "whisper_tiny_en")


@dataclass
class Loaded:
    """A model's entry, folder and data; models are built from them."""

    name: str

    def __post_init__(self):
        self.entry = ENTRIES[self.name]
        self.folder = folder(self.name)
        self.x, self.y, self.weights = self.entry.data(self.folder)

    def base(self):
        """The pretrained model, with the same new head at each call."""
        keras.utils.set_random_seed(0)
        return self.entry.build(self.folder)

    def compile(self, model, rate):
        model.compile(
            keras.optimizers.Adam(rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model

    def fit(self, model, epochs, **options):
        """The loss by epoch, each of two batches."""
        return model.fit(
            self.x,
            self.y,
            sample_weight=self.weights,
            batch_size=len(self.y) // 2,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            **options,
        ).history["loss"]

    def predict(self, model):
        return np.array(model.predict(self.x, batch_size=4, verbose=0))

    def call(self, model):
        """The outputs of operations that run one by one.

        A compiler may round a model with an adapter that does nothing another
        way than the model alone.
        """
        return np.array(ops.convert_to_numpy(model(self.x, training=False)))
