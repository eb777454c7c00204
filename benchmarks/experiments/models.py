"""The pretrained model, built anew for each run from weights in memory."""

import keras_hub

from benchmarks.experiments import methods
from examples.real_models import minilm


class Pretrained:
    """A pretrained backbone that models of a task are built from.

    Args:
        task: The class of a KerasHub task.
        backbone: KerasHub backbone.
        preprocessor: The task's preprocessor, or `None`.
        length: Integer, tokens of a sentence. Defaults to `None`.
        **arguments: Further arguments of the task's class.
    """

    def __init__(
        self, task, backbone, preprocessor=None, length=None, **arguments
    ):
        self.preprocessor = preprocessor
        if length is not None:
            self.preprocessor.sequence_length = length
        self.task, self.backbone = task, type(backbone)
        self.arguments = arguments
        self.config = backbone.get_config()
        # Llama's leaves it out, as of KerasHub 0.32.
        if hasattr(backbone, "tie_word_embeddings"):
            self.config["tie_word_embeddings"] = backbone.tie_word_embeddings
        self.weights = backbone.get_weights()

    def build(self, method, rank_blocks, seed, **arguments):
        """A new model in which a method's parameters and the head train.

        Args:
            method: String, one of `METHODS`.
            rank_blocks: Integer.
            seed: Integer.
            **arguments: Further arguments of the task's class.
        """
        backbone = self.backbone.from_config(self.config)
        backbone.set_weights(self.weights)
        arguments = self.arguments | arguments
        model = self.task(backbone=backbone, preprocessor=None, **arguments)
        methods.METHODS[method].adapt(model, rank_blocks, seed)
        return model


def text_classifier(preset, length):
    """A `Pretrained` for classifiers, of all-MiniLM-L6-v2 by default."""
    model = keras_hub.models.TextClassifier.from_preset(
        preset or minilm.preset(), num_classes=2
    )
    return Pretrained(type(model), model.backbone, model.preprocessor, length)


def language_model(preset, length):
    """A `Pretrained` for language models."""
    model = keras_hub.models.CausalLM.from_preset(preset)
    return Pretrained(type(model), model.backbone, model.preprocessor, length)
