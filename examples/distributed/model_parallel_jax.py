"""ETHER in a model that is cut up over several devices of JAX.

    python examples/distributed/model_parallel_jax.py
    python examples/distributed/model_parallel_jax.py --preset gemma_2b_en

KerasHub's layout map says along which axes each kernel of Gemma is cut, and one
rule more says so for the vectors. The same goes for the other models that have
a `get_layout_map`, Llama and Qwen among them. By default Gemma is a tiny
random one, which is trained on one device as well, to compare the losses.

Where there are no GPUs or TPUs, the processor passes for eight devices.
"""

import argparse
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
import keras_hub
import numpy as np
from common import report

import keras_ether


def main():
    options = read_options()
    distribution = make_distribution(options)
    with distribution.scope():
        several = train(options)
    devices = f"{distribution.device_mesh.devices.size} devices"
    if options.preset:
        print(f"Losses on {devices}: {several}")
    else:
        report(train(options), several, devices)


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", help="a preset of Gemma, or a folder of one"
    )
    parser.add_argument(
        "--model-devices",
        type=int,
        default=4,
        help="over how many devices a kernel is cut (default: %(default)s)",
    )
    parser.add_argument(
        "--replicate-vectors",
        action="store_true",
        help="give each device all vectors, instead of a part of each",
    )
    return parser.parse_args()


def make_distribution(options):
    """The devices as a grid, and what goes where on it."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // options.model_devices, options.model_devices),
        ("batch", "model"),
        devices,
    )
    layout_map = keras_hub.models.GemmaBackbone.get_layout_map(mesh)
    # The vectors of every layer, cut between blocks. Without this rule each
    # device has them all, which is the quicker choice: they are small.
    if not options.replicate_vectors:
        layout_map[".*/ether/.*"] = ("model",)
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


def train(options):
    """Losses by epoch, on what devices the scope says."""
    model = make_model(options.preset)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # Each device gets the same number of blocks.
    keras_ether.apply(model, rank_blocks=options.model_devices, seed=0)
    x, y = make_data(model.backbone.vocabulary_size)
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    print_layout(model)
    # The kernels stay cut up while the vectors are folded into them.
    keras_ether.merge(model)
    print_layout(model)
    return history.history["loss"]


def make_model(preset):
    """Gemma, built where the distribution says: cut up from the start."""
    keras.utils.set_random_seed(0)
    if preset:
        return keras_hub.models.GemmaCausalLM.from_preset(
            preset, preprocessor=None
        )
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=64,
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        head_dim=8,
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


def make_data(vocabulary_size):
    """Made-up sentences, and as labels each token's next one."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(vocabulary_size, size=(32, 17))
    x = {
        "token_ids": tokens[:, :-1],
        "padding_mask": np.ones((32, 16), "int32"),
    }
    return x, tokens[:, 1:]


def print_layout(model):
    """Prints how one layer's variables lie on the devices."""
    layer = model.backbone.get_layer("decoder_block_0").attention.query_dense
    for variable in layer.weights:
        sharding = variable.value.sharding
        print(
            f"{variable.path}: shape {variable.shape}, on each of "
            f"{len(sharding.device_set)} device(s) "
            f"{sharding.shard_shape(variable.shape)}."
        )


if __name__ == "__main__":
    main()
