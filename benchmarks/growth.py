"""How the cost of one layer grows with tokens, width and blocks.

Time of a forward and a backward pass through one `Dense` layer, over the same
layer without an adapter, which asks for the inputs' gradient alone.
"""

import keras
import numpy as np
from keras import ops

import keras_ether
from benchmarks import report
from benchmarks import timing

TOKENS = (256, 1024, 4096, 8192)
WIDTHS = (256, 512, 1024, 2048)
BLOCKS = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("ether", "ether+")


def main(args):
    cases = {
        "tokens": [(t, 768, 4) for t in TOKENS],
        "width": [(1024, w, 4) for w in WIDTHS],
        "blocks": [(1024, 768, n) for n in BLOCKS],
    }
    if args.quick:
        cases = {
            axis: sizes[:: len(sizes) - 1] for axis, sizes in cases.items()
        }
    tables = {}
    for axis, sizes in cases.items():
        title = f"One Dense layer, by {axis}"
        tables[title] = [measure(*size) for size in sizes]
    report.save("growth", args, tables)


def measure(tokens, width, blocks):
    """One row: each method's time over the bare layer's."""
    steps = {"bare": passes(tokens, width)}
    for method in METHODS:
        steps[method.upper()] = passes(tokens, width, method, blocks)
    steps["Keras LoRA r=8"] = passes(tokens, width, "lora")
    times = timing.alternate(steps, rounds=60, seconds=6)
    row = {"tokens": tokens, "width": width, "blocks": blocks}
    for found in timing.ratios(times, reference="bare"):
        if found["name"] == "bare":
            row["bare, ms"] = found["milliseconds"]
        else:
            row[found["name"]] = found["ratio"]
    return row


def passes(tokens, width, method=None, blocks=None):
    """A compiled forward and backward pass, where the backend compiles."""
    layer = keras.layers.Dense(width)
    layer.build((None, width))
    if method == "lora":
        layer.enable_lora(8)
    elif method is not None:
        keras_ether.apply(
            layer, method=method, rank_blocks=blocks, targets="all-linear"
        )
    for weight in (layer._kernel, layer.bias):
        weight.trainable = False
    rng = np.random.default_rng(0)
    x, upstream = (
        ops.array(rng.normal(size=(tokens, width)), "float32") for _ in "xg"
    )
    return PASSES[keras.backend.backend()](layer, x, upstream)


def _jax_passes(layer, x, upstream):
    import jax

    trainable = [w.value for w in layer.trainable_variables]
    frozen = [w.value for w in layer.non_trainable_variables]

    @jax.jit
    def run(trainable, frozen, x, upstream):
        def call(trainable, x):
            return layer.stateless_call(trainable, frozen, x, training=True)[0]

        y, backward = jax.vjp(call, trainable, x)
        return y, backward(upstream)

    return lambda: jax.block_until_ready(run(trainable, frozen, x, upstream))


def _tensorflow_passes(layer, x, upstream):
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def run(x, upstream):
        watched = [w.value for w in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, *watched], output_gradients=upstream)

    return lambda: run(x, upstream)


def _torch_passes(layer, x, upstream):
    import torch

    x.requires_grad_()
    watched = [w.value for w in layer.trainable_variables]

    def run():
        y = layer(x, training=True)
        return y, torch.autograd.grad(y, [x, *watched], upstream)

    return run


PASSES = {
    "jax": _jax_passes,
    "tensorflow": _tensorflow_passes,
    "torch": _torch_passes,
}
