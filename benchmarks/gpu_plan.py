"""Kernels and traffic of a training step on a GPU, as its compiler plans them.

XLA compiles for a GPU on a machine without one, see `described_gpus`. No time
comes out of it; what it plans is the same at each run.

    python -m benchmarks gpu_plan --chip a100
"""

import argparse
import functools
import re
import time

from benchmarks import described_gpus
from benchmarks import hlo
from benchmarks import planned
from benchmarks import report

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
    rows, profiles = [], {}
    for name in planned.chosen(args):
        started = time.perf_counter()
        compiled = compile_for(device, *planned.training_step(name, args))
        row, profiles[name] = measure(compiled)
        row = {"method": name, **row}
        rows.append(planned.with_ratios(row, rows, RATIOS))
        seconds = time.perf_counter() - started
        print(f"{row} ({seconds:.0f} s to compile)", flush=True)
        title = planned.title(args, args.chip.upper())
        report.save_planned(
            f"gpu-plan-{args.chip}-{args.policy}", args, {title: rows}, profiles
        )
    print(report.markdown(rows))


def compile_for(device, step, state, batch):
    import jax
    from jax.sharding import SingleDeviceSharding

    place = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device)
    )
    arguments = jax.tree.map(lambda x: place(x.shape, x.dtype), (state, batch))
    return jax.jit(step, donate_argnums=(0,)).lower(*arguments).compile()


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
        layer = re.search(r'op_name="([^"]*)"', rest)
        found.append(
            {
                "kernel": operation,
                "kind": _kind(moved, rest, called, computations),
                "of": layer[1].replace("\\'", "'") if layer else "",
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
