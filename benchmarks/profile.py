"""Where PyTorch spends a training step: its profiler's own times, by kind.

`wide` are products of three dimensions over 64, which the limit has too; `thin`
those with fewer rows in one of them. `other operations` are additions, copies,
activations and attention. `between` is what is left of the step's wall time:
Python, and PyTorch's dispatch.
"""

import time

import numpy as np
from torch.profiler import ProfilerActivity
from torch.profiler import profile

from benchmarks import models
from benchmarks import report
from benchmarks import train
from benchmarks import variants

METHODS = (
    "limit",
    "ETHER n=1",
    "ETHER n=4",
    "ETHER n=32",
    "ETHER+ n=1",
    "ETHER+ n=8",
    "ETHER+ n=32",
    "Keras LoRA r=8",
)
KINDS = ("wide", "thin", "other operations", "between")
THIN = 64


def main(args):
    steps = {}
    for name in METHODS:
        model, inputs, labels = models.minilm()
        variants.VARIANTS[name](model, "all-linear")
        train.compile_model(model)
        steps[name] = train.step(model, inputs, labels)
        for _ in range(2):
            steps[name]()
    found = {name: [] for name in METHODS}
    for _ in range(5 if args.quick else 15):
        for name, step in steps.items():
            found[name].append(by_kind(step))
    rows = []
    for name, samples in found.items():
        medians = {
            f"{kind}, ms": round(
                float(np.median([s[kind] for s in samples])), 1
            )
            for kind in KINDS
        }
        calls = samples[0]["operations"]
        rows.append({"method": name, **medians, "operations": calls})
    report.save(
        "profile",
        args,
        {"A step under the profiler, MiniLM's size, all linear maps": rows},
    )


def by_kind(step):
    """Milliseconds of one step by kind of operation, and their number."""
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True
    ) as profiler:
        before = time.perf_counter()
        step()
        wall = 1e3 * (time.perf_counter() - before)
    sums = dict.fromkeys(KINDS, 0.0) | {"operations": 0}
    for event in profiler.key_averages(group_by_input_shape=True):
        if not event.key.startswith("aten::"):
            continue
        sums[kind_of(event)] += event.self_cpu_time_total / 1e3
        sums["operations"] += event.count
    sums["between"] = wall - sum(sums[kind] for kind in KINDS[:-1])
    return sums


def kind_of(event):
    if event.key not in ("aten::mm", "aten::bmm", "aten::addmm"):
        return "other operations"
    shapes = [shape for shape in event.input_shapes if len(shape) > 1]
    dimensions = [size for shape in shapes for size in shape[-2:]]
    return "thin" if min(dimensions) <= THIN else "wide"
