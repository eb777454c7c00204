"""Kernels that PyTorch starts in a training step, by method.

On a GPU each operation of a small model takes some five microseconds to start,
whatever it computes. Counted are the operations that PyTorch dispatches in a
step, but for views and what only allocates. With `torch.compile`, counted are
the kernels that its compiler made, and the library's that these call.
"""

import argparse
import collections

from benchmarks import report

METHODS = (
    "limit",
    *(f"{m} n={n}" for m in ("ETHER", "ETHER+") for n in (1, 4, 32)),
    "Keras LoRA r=8",
)
QUICK = ("limit", "ETHER n=4", "ETHER+ n=4", "Keras LoRA r=8")
POLICIES = ("float32", "bfloat16")
# What a dispatcher sees and no device is asked to do.
NOT_STARTED = ("aten::empty", "aten::empty_like", "aten::empty_strided")
NOT_STARTED += ("aten::detach", "aten::lift_fresh", "aten::new_empty")
NOT_STARTED += ("aten::_local_scalar_dense", "aten::is_same_size")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--layers", type=int, default=4)
    command.add_argument("--policies", nargs="+", default=POLICIES)
    command.add_argument("--methods", nargs="+", default=None, choices=METHODS)
    command.add_argument(
        "--compiled",
        action="store_true",
        help="the kernels of `jit_compile=True` too: minutes for each method",
    )


def main(args):
    tables, most = {}, {}
    for policy in args.policies:
        rows = []
        for name in args.methods or (QUICK if args.quick else METHODS):
            found = count(name, policy, args.layers)
            row = {"method": name, "kernels": sum(found.values())}
            if args.compiled:
                row["compiled"] = count_compiled(name, policy, args.layers)
            rows.append(row)
            most[f"{name}, {policy}"] = dict(found.most_common(12))
        for row in rows:
            row["ratio"] = round(row["kernels"] / rows[0]["kernels"], 3)
        title = f"{args.layers} layers, {7 * args.layers} maps, {policy}"
        tables[title] = rows
    report.save("kernels", args, tables)
    for name, found in most.items():
        print(name, found)


def build(name, policy, layers, **options):
    """A small decoder's training step: the count depends on no width."""
    import keras
    import keras_hub
    import numpy as np

    from benchmarks import train
    from benchmarks import variants

    keras.config.set_dtype_policy(policy)
    width, length = 128, 16
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=64,
        num_layers=layers,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=4 * width,
    )
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    variants.VARIANTS[name](model, "all-linear")
    train.compile_model(model, **options)
    # More rows than the widest kernel has, so that every layer folds.
    tokens = np.ones((32, length), "int32")
    inputs = {"token_ids": tokens, "padding_mask": tokens}
    return lambda: model.train_on_batch(inputs, tokens)


def count(name, policy, layers):
    """Operations of one step by name, after one that builds."""
    step = build(name, policy, layers)
    step()
    with counter() as found:
        step()
    return found.counts


def counter():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.counts = collections.Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            schema = function._schema
            if schema.name not in NOT_STARTED and not is_view(schema):
                self.counts[schema.name] += 1
            return function(*args, **(kwargs or {}))

    return Counter()


def is_view(schema):
    """Whether an operation gives an alias of its argument, and writes none."""
    aliased = [r.alias_info for r in schema.returns if r.alias_info]
    return bool(aliased) and not any(a.is_write for a in aliased)


def count_compiled(name, policy, layers):
    """Kernels of the compiled step: made by its compiler, and called by it."""
    import re

    import torch
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    step = build(name, policy, layers, jit_compile=True)
    _, codes = run_and_get_code(step)
    calls = r"^\s+(?:extern_kernels\.\w+|\w+_fused_\w+(?:\.run)?|aten\.\w+)\("
    return sum(len(re.findall(calls, code, re.M)) for code in codes)
