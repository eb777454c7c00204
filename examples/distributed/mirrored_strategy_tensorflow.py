"""ETHER on several devices of TensorFlow, by `tf.distribute.MirroredStrategy`.

    python examples/distributed/mirrored_strategy_tensorflow.py

Each device has the model, and a part of a batch. Where there are no GPUs, the
processor passes for two devices.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from common import make_data
from common import make_model
from common import report

import keras_ether


def main():
    # Before anything else: TensorFlow fixes its devices when it starts.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    gpus = tf.config.list_logical_devices("GPU")
    strategy = tf.distribute.MirroredStrategy(
        gpus or tf.config.list_logical_devices("CPU")
    )
    one = train(tf.distribute.get_strategy())
    several = train(strategy)
    report(one, several, f"{strategy.num_replicas_in_sync} devices")


def train(strategy):
    """Losses by epoch."""
    # All that makes variables stands in the scope.
    with strategy.scope():
        model = make_model()
        keras_ether.apply(model, trainable=["head"], seed=0)
        model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    x, y = make_data()
    losses = model.fit(x, y, epochs=5, shuffle=False, verbose=0).history["loss"]
    keras_ether.merge(model)
    return losses


if __name__ == "__main__":
    main()
