"""Training steps of a decoder, to be compiled for chips that are not there."""

import argparse

from benchmarks import abstract_models

METHODS = (
    "limit",
    *(f"{m} n={n}" for m in ("ETHER", "ETHER+") for n in (1, 4, 8, 32)),
    "Keras LoRA r=8",
    "default",
)
QUICK = ("limit", "ETHER n=4", "ETHER+ n=4")


def add_arguments(
    command: argparse.ArgumentParser,
    width: int,
    methods: tuple[str, ...] = METHODS,
) -> None:
    command.add_argument("--policy", default="bfloat16")
    command.add_argument(
        "--base", choices=("int8", "int4"), help="quantize the kernels first"
    )
    command.add_argument("--width", type=int, default=width)
    command.add_argument("--layers", type=int, default=2)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--tokens", type=int, default=1024)
    command.add_argument(
        "--methods", nargs="+", default=None, choices=methods, metavar="METHOD"
    )


def chosen(args):
    return args.methods or (QUICK if args.quick else METHODS)


def title(args, chip):
    return (
        f"{args.layers} layers, {args.width} wide, {args.batch} x "
        f"{args.tokens} tokens, {args.base or args.policy}, {chip}"
    )


def with_ratios(row, rows, keys):
    """A row with its figures over those of the limit, once that is there."""
    limit = next((r for r in (*rows, row) if r["method"] == "limit"), None)
    for key in keys:
        ratio = row[key] / (limit[key] or 1) if limit else 0.0
        row[f"{key.split()[0]} ratio"] = round(ratio, 3)
    return row


def decoder(args):
    """A Llama of random weights."""
    import keras
    import keras_hub

    keras.config.set_dtype_policy(args.policy)
    heads = max(args.width // 128, 2)
    model = keras_hub.models.Llama3Backbone(
        vocabulary_size=1024,
        num_layers=args.layers,
        num_query_heads=heads,
        num_key_value_heads=heads // 2,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
    )
    if args.base:
        # What is planned depends on no value.
        with abstract_models.quantizing_tensors():
            model.quantize(args.base)
    return model


def training_step(name, args):
    """Keras's own training step, its state, and a batch of shapes."""
    import jax
    import keras

    from benchmarks import variants

    model = decoder(args)
    if name == "limit":
        for weight in model.weights:
            weight.trainable = False
        first = "transformer_layer_0/self_attention_layernorm"
        next(w for w in model.weights if first in w.path).trainable = True
    elif name.startswith("Keras LoRA"):
        names = {x.name for x in variants.linear_maps(model, "all-linear")}
        model.enable_lora(8, target_layer_names=sorted(names))
    else:
        variants.VARIANTS[name](model, "all-linear")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    state = tuple(
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    shape = (args.batch, args.tokens)
    tokens = jax.ShapeDtypeStruct(shape, "int32")
    targets = jax.ShapeDtypeStruct(
        (*shape, args.width), keras.config.dtype_policy().compute_dtype
    )
    batch = {"token_ids": tokens, "padding_mask": tokens}, targets
    return model.train_step, state, batch
