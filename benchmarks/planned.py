"""Training steps of a decoder, to be compiled for chips that are not there."""

import argparse
import functools
import time

from benchmarks import abstract_models
from benchmarks import report

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


def run(args, saved, title, names, compiled, measure, ratios, first="method"):
    """Compiles for each name, and saves and prints a row of what is planned.

    Args:
        args: The command line's.
        saved: String, name of the file of results.
        title: String, of the table.
        names: Sequence of strings. Ratios are to the limit, or to the base.
        compiled: Function of a name that gives a program compiled by XLA.
        measure: Function of a program that gives a row, and the operations
            that move most.
        ratios: Columns whose ratios are added to the row.
        first: String, the column of the names.
    """
    rows, profiles = [], {}
    for name in names:
        started = time.perf_counter()
        row, profiles[name] = measure(compiled(name))
        rows.append({first: name, **row})
        add_ratios(rows, first, ratios)
        seconds = time.perf_counter() - started
        print(f"{rows[-1]} ({seconds:.0f} s to compile)", flush=True)
        # Compiling all takes half an hour: what is there is saved.
        more = {"largest operations": profiles}
        report.write(report.path_of(saved, args), args, {title: rows}, more)
    print(report.markdown(rows))


def add_ratios(rows, first, columns):
    """Adds to the last row its figures over those of the reference, if any."""
    row = rows[-1]
    reference = next((r for r in rows if r[first] in ("limit", "base")), None)
    for column in columns:
        ratio = row[column] / (reference[column] or 1) if reference else 0.0
        row[f"{column.split()[0]} ratio"] = round(ratio, 3)


def compile_for(device, step, state, batch, donated=(0,)):
    """A function of a state and a batch, compiled for a device."""
    import jax
    from jax.sharding import SingleDeviceSharding

    place = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device)
    )
    arguments = jax.tree.map(lambda x: place(x.shape, x.dtype), (state, batch))
    return jax.jit(step, donate_argnums=donated).lower(*arguments).compile()


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
    variants.VARIANTS[name](model, "all-linear")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    shape = (args.batch, args.tokens)
    tokens = jax.ShapeDtypeStruct(shape, "int32")
    targets = jax.ShapeDtypeStruct(
        (*shape, args.width), keras.config.dtype_policy().compute_dtype
    )
    batch = {"token_ids": tokens, "padding_mask": tokens}, targets
    return model.train_step, abstract_models.state_of(model), batch
