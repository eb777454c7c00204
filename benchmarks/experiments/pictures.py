"""CIFAR-10's test pictures, and DINOv2 ViT-S/14 with a new head."""

import keras
import keras_hub
import numpy as np

from benchmarks.experiments import classify
from benchmarks.experiments import data as data_lib
from benchmarks.experiments import models
from benchmarks.experiments.datasets import SEED

# Six patches of 14 a side: what two cores manage.
SIZE = 84
CLASSES = 10


def trainer(options):
    """A `Trainer`, as the command line asks for it."""
    from examples.real_models import cifar10
    from examples.real_models import dinov2_small

    backbone = keras_hub.models.Backbone.from_preset(
        options.preset or dinov2_small.preset(), image_shape=(SIZE, SIZE, 3)
    )
    pictures, labels = cifar10.load()
    sizes = (options.dev_samples, options.test_samples)
    parts = split(labels, *sizes)
    mean, deviation = dinov2_small.MEAN, dinov2_small.DEVIATION

    def prepared(rows):
        resized = keras.ops.image.resize(
            pictures[rows].astype("float32"),
            (SIZE, SIZE),
            interpolation="bicubic",
        )
        resized = np.clip(keras.ops.convert_to_numpy(resized), 0.0, 255.0)
        scaled = (resized / 255.0 - mean) / deviation
        return scaled.astype("float32"), labels[rows]

    # The rest is to draw from: as much as any run takes.
    train = parts["train"][: 4 * options.samples]
    data = data_lib.Data(
        train=prepared(train),
        dev=prepared(parts["dev"]),
        test=prepared(parts["test"]),
        classes=CLASSES,
    )
    return classify.Trainer(models.Pretrained(Classifier, backbone), data)


def split(labels, dev, test):
    """Rows of each part, drawn at random."""
    order = np.random.default_rng(SEED).permutation(len(labels))
    return {
        "dev": order[:dev],
        "test": order[dev : dev + test],
        "train": order[dev + test :],
    }


class Classifier(keras.Model):
    """A head on the vector of the backbone's class token."""

    def __init__(self, backbone, num_classes, preprocessor=None):
        (name,) = backbone.input
        inputs = keras.Input((SIZE, SIZE, 3))
        vector = backbone({name: inputs})[:, 0]
        outputs = keras.layers.Dense(num_classes, name="logits")(vector)
        super().__init__(inputs, outputs)
        self.backbone = backbone
