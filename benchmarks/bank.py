"""Many adapters on one base: time and memory, over the base's own."""

import os
import tempfile
import time

import numpy as np

import keras_ether
from benchmarks import models
from benchmarks import report
from benchmarks import timing

BATCH, LENGTH = 32, 64
# Of the LoRAs that are compared.
RANK = 8
SIZES = (1, 100, 1_000, 10_000)


def main(args):
    model, inputs, _ = models.minilm(BATCH, LENGTH)
    steps = {"base": lambda: model.predict_on_batch(inputs)}
    adding = []
    for method in ("ether", "ether+"):
        for n, capacity, distinct in cases(args.quick):
            bank, trial = bank_of(method, n, capacity)
            name = f"{method.upper()} n={n}, {capacity:,} adapters"
            for count in distinct:
                steps[f"{name}, {count} in a batch"] = predict(
                    bank, inputs, count
                )
            adding.append({"bank": name, **time_to_add(bank), **trial})
    if not args.quick:
        steps["a loop over 32 adapters, ETHER n=4"] = loop(inputs)
    times = timing.alternate(steps, rounds=100, seconds=args.seconds)
    ratios = timing.ratios(times, "base", "model")
    if args.backend == "torch":
        ratios += peft_rows(args.seconds / 4)
    tables = {
        f"`predict`, MiniLM's size, {BATCH} x {LENGTH} tokens": ratios,
        "Adding an adapter from a file, and the bank's memory": adding,
        "Memory of N adapters, MB": memory(SIZES),
    }
    report.save("bank", args, tables)


def cases(quick):
    """`(blocks, adapters in the bank, different ones in a batch)`."""
    if quick:
        return [(4, 1_000, (1, 32))]
    return [
        (4, 1, (1,)),
        (4, 100, (32,)),
        (4, 1_000, (1, 8, 32)),
        (4, 10_000, (32,)),
        (1, 1_000, (32,)),
    ]


def peft_rows(seconds):
    """PEFT's mixed batches of LoRAs, over the base on `transformers`."""
    from benchmarks import peft_models

    steps = peft_models.mixed_batches(BATCH, LENGTH, RANK)
    times = timing.alternate(steps, rounds=100, seconds=seconds)
    return timing.ratios(times, "base, transformers", "model")


def adapted(method="ether", rank_blocks=4):
    model, _, _ = models.minilm(BATCH, LENGTH)
    return keras_ether.apply(
        model,
        method=method,
        rank_blocks=rank_blocks,
        targets="all-linear",
        seed=0,
    )


def bank_of(method, rank_blocks, capacity):
    """A bank and the seconds that making it took, with its trial and without.

    Beyond a batch's, its adapters are copies in memory.
    """
    model = adapted(method, rank_blocks)
    seconds = {}
    for certify in (False, True):
        start = time.perf_counter()
        bank = keras_ether.AdapterBank(model, capacity, certify=certify)
        seconds[certify] = time.perf_counter() - start
    for i in range(min(capacity, BATCH)):
        bank.add(f"adapter {i}")
    return bank, {
        "seconds to make": round(seconds[False], 1),
        "with the trial": round(seconds[True], 1),
    }


def predict(bank, inputs, count):
    names = [f"adapter {i % count}" for i in range(BATCH)]
    batch = {**inputs, "adapter_id": bank.ids(names)}
    return lambda: bank.model.predict_on_batch(batch)


def loop(inputs):
    """Each example by a model of its own adapter, one after the other."""
    model = adapted()
    rows = [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(BATCH)]
    return lambda: [model.predict_on_batch(row) for row in rows]


def time_to_add(bank, times=5):
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "adapter.safetensors")
        bank.save("adapter 0", file)
        found = []
        for _ in range(times):
            start = time.perf_counter()
            bank.add("adapter 0", file)
            found.append(1e3 * (time.perf_counter() - start))
    variables = bank.model.trainable_variables
    return {
        "milliseconds to add": round(float(np.median(found[1:])), 1),
        "the first": round(found[0], 1),
        "MB": round(megabytes(variables), 1),
    }


def memory(sizes):
    """Counted, not measured: 4 bytes a parameter, with the head."""
    model, _, _ = models.minilm(BATCH, LENGTH)
    kernels = [
        layer.ether.kernel_shape
        for layer in adapted()._flatten_layers()
        if hasattr(layer, "ether")
    ]
    # Of a kernel (d, heads, size) as a (d, heads * size) matrix, about.
    lora = 4e-6 * sum(
        RANK * (shape[0] + int(np.prod(shape[1:]))) for shape in kernels
    )
    of = {
        method: megabytes(adapted(method).trainable_variables)
        for method in ("ether", "ether+")
    }
    return [
        {
            "N": count,
            "ETHER": round(count * of["ether"], 1),
            "ETHER+": round(count * of["ether+"], 1),
            f"LoRA r={RANK}": round(count * lora, 1),
            "merged copies": round(count * megabytes(model.variables), 1),
        }
        for count in sizes
    ]


def megabytes(variables):
    return 4e-6 * float(sum(np.prod(v.shape, dtype="int64") for v in variables))
