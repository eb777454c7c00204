"""ETHER on several devices of JAX: each has the model, and a part of a batch.

    python examples/distributed/data_parallel_jax.py

Where there are no GPUs or TPUs, the processor passes for eight devices.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# Heeded by the processor alone, and read when JAX starts.
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        "--xla_force_host_platform_device_count=8",
    ]
)

import keras
from common import make_data
from common import make_model
from common import report

import keras_ether


def main():
    one = train()
    # The distribution comes first; all that follows is as on one device.
    distribution = keras.distribution.DataParallel()
    with distribution.scope():
        several = train()
    report(one, several, f"{distribution.device_mesh.devices.size} devices")


def train():
    """Losses by epoch, on what devices the scope says."""
    model = make_model()
    keras_ether.apply(model, trainable=["head"], seed=0)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = make_data()
    losses = model.fit(x, y, epochs=5, shuffle=False, verbose=0).history["loss"]
    vector = model.get_layer("first").ether.input_u
    print(f"{vector.path} is on {len(vector.value.devices())} device(s).")
    keras_ether.merge(model)
    return losses


if __name__ == "__main__":
    main()
