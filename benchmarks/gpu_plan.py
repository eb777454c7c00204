"""Kernels and traffic of a training step on a GPU, as its compiler plans them.

XLA compiles for a GPU on a machine without one, see `described_gpus`. No time
comes out of it; what it plans is the same at each run.

    python -m benchmarks gpu_plan --chip a100
"""

import argparse
import re

from benchmarks import described_gpus
from benchmarks import hlo
from benchmarks import planned

# A kernel that moves less takes no longer than starting it.
SMALL = 2**20
RATIOS = ("traffic GB", "kernels", "temporaries MiB")
LARGEST = 20
# No kernel is started for them.
FREE = re.compile(
    r"parameter|tuple|get-tuple-element|bitcast|constant|after-all|.*-done"
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    described_gpus.add_arguments(command)
    planned.add_arguments(command, 1536)


def main(args):
    described_gpus.set_environment(args.cuda)
    device = described_gpus.device(args.chip, args.cuda)
    planned.run(
        args,
        f"gpu-plan-{args.chip}-{args.policy}",
        planned.title(args, args.chip.upper()),
        planned.chosen(args),
        lambda name: planned.compile_for(
            device, *planned.training_step(name, args)
        ),
        measure,
        RATIOS,
    )


def measure(compiled):
    """A row of the table, and the kernels that move most."""
    found = kernels(compiled.as_text())
    memory = compiled.memory_analysis()
    kinds = [kernel["kind"] for kernel in found]
    row = {
        "traffic GB": round(sum(kernel["MB"] for kernel in found) / 1e3, 3),
        "kernels": len(found),
        "products": kinds.count("product"),
        "large": kinds.count("large"),
        "small": kinds.count("small"),
        "temporaries MiB": round(memory.temp_size_in_bytes / 2**20),
    }
    return row, sorted(found, key=lambda kernel: -kernel["MB"])[:LARGEST]


def kernels(text):
    """What is started in a step, loops and branches included."""
    computations = hlo.computations(text)
    return _started(computations, hlo.entry_name(text))


def _started(computations, name):
    types, found = {}, []
    for operation, kind, opcode, operands, rest in computations[name]:
        types[operation] = kind
        called = re.findall(r"(?:calls|to_apply|body)=%([\w.-]+)", rest)
        if opcode in ("call", "while", "async-start"):
            inner = _started(computations, called[-1])
            times = hlo.trips(computations, rest) if opcode == "while" else 1
            found += inner * times
            continue
        if opcode == "conditional":
            branches = re.search(r"branch_computations={([^}]*)}", rest)
            names = re.findall(r"%([\w.-]+)", branches[1])
            inner = (_started(computations, branch) for branch in names)
            found += max(inner, key=len)
            continue
        if FREE.fullmatch(opcode):
            continue
        sources = [types[o] for o in operands if o in types]
        moved = sum(s for t in (kind, *sources) for s, _ in hlo.arrays(t))
        found.append(
            {
                "kernel": operation,
                "kind": _kind(moved, rest, called, computations),
                "of": hlo.layer(rest),
                "MB": round(moved / 1e6, 4),
                "writes": hlo.shapes(kind),
                "reads": [s for source in sources for s in hlo.shapes(source)],
            }
        )
    return found


def _kind(moved, rest, called, computations):
    inside = [op for name in called for op in computations.get(name, ())]
    opcodes = {opcode for _, _, opcode, _, _ in inside}
    if opcodes & {"dot", "convolution"} or "gemm" in rest:
        return "product"
    return "small" if moved < SMALL else "large"
