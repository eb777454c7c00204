"""Memory traffic of a bank's `predict` on a TPU, as its compiler plans it.

    pip install libtpu
    python -m benchmarks tpu_bank

The decoder of `python -m benchmarks tpu`, each example of the batch with
another adapter of a thousand, over its base.
"""

from benchmarks import planned
from benchmarks import tpu

METHODS = ("base", *(f"{m} n={n}" for m in ("ETHER", "ETHER+") for n in (1, 4)))
QUICK = ("base", "ETHER n=4", "ETHER+ n=4")
CAPACITY = 1_000


def add_arguments(command):
    tpu.add_arguments(command, METHODS)


def main(args):
    tpu.set_environment()
    chip = tpu.device(args.chip)
    title = planned.title(args, args.chip)
    planned.run(
        args,
        "tpu-bank",
        f"`predict`, {CAPACITY:,} adapters, {title}",
        args.methods or (QUICK if args.quick else METHODS),
        lambda name: planned.compile_for(
            chip, *predicting(name, args), donated=()
        ),
        tpu.measure,
        tpu.RATIOS,
        first="model",
    )


def predicting(name, args):
    """A function of a model's state and inputs, and shapes of both."""
    import jax

    import keras_ether

    model = planned.decoder(args)
    tokens = jax.ShapeDtypeStruct((args.batch, args.tokens), "int32")
    batch = {"token_ids": tokens, "padding_mask": tokens}
    if name != "base":
        method, _, blocks = name.lower().partition(" n=")
        keras_ether.apply(
            model,
            method=method,
            rank_blocks=int(blocks),
            targets="all-linear",
            seed=0,
        )
        model = keras_ether.AdapterBank(model, CAPACITY).model
        batch["adapter_id"] = jax.ShapeDtypeStruct((args.batch,), "int32")
    state = tuple(
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    )

    def predict(state, batch):
        return model.stateless_call(*state, batch)[0]

    return predict, state, batch
