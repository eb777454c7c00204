"""Memory traffic of a training step on a TPU, as its compiler plans it.

libtpu compiles for a TPU on a machine without one. What it plans is the same at
each run, so that two versions of the package can be compared to the last byte:
no clock, no noise.

    pip install libtpu
    python -m benchmarks tpu
"""

import argparse
import os
import re

from benchmarks import collectives
from benchmarks import hlo
from benchmarks import planned

LARGEST = 20
RATIOS = ("HBM GB", "Gflops", "temporaries MiB")


def add_arguments(
    command: argparse.ArgumentParser,
    methods: tuple[str, ...] = planned.METHODS,
) -> None:
    command.add_argument("--chip", default="v5e:2x2")
    command.add_argument(
        "--chips",
        type=int,
        default=1,
        choices=[1, *collectives.TOPOLOGIES],
        help="more than one: what these tell each other",
    )
    command.add_argument(
        "--layout", default="model", choices=collectives.LAYOUTS
    )
    planned.add_arguments(command, 2048, methods)


def main(args):
    set_environment()
    if args.chips > 1:
        collectives.main(args)
        return
    chip = device(args.chip)
    planned.run(
        args,
        f"tpu-{args.base}" if args.base else "tpu",
        planned.title(args, args.chip),
        planned.chosen(args),
        lambda name: planned.compile_for(
            chip, *planned.training_step(name, args)
        ),
        measure,
        RATIOS,
    )


def set_environment():
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # It compiles and opens no device, so that several may run.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def device(chip):
    """A device of JAX to compile for."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(chip, platform="tpu").devices[0]


def measure(compiled):
    """A row of the table, and the operations that move most."""
    found = operations(compiled.as_text())
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    row = {
        "HBM GB": round(sum(op["MB"] for op in found) / 1e3, 4),
        "accessed GB": round(cost["bytes accessed"] / 1e9, 1),
        "Gflops": round(cost["flops"] / 1e9),
        "temporaries MiB": round(memory.temp_size_in_bytes / 2**20),
        "Mcycles": round(sum(op.pop("cycles") for op in found) / 1e6, 1),
    }
    largest = sorted(found, key=lambda op: -op["MB"])[:LARGEST]
    return row, largest


# Nothing moves in them, or what moves is counted where it starts.
FREE = re.compile(r"parameter|tuple|get-tuple-element|bitcast|constant|.*-done")


def operations(text):
    """Operations of the entry computation, by what they move in HBM."""
    types, found = {}, []
    for name, kind, opcode, operands, rest in hlo.entry(text):
        types[name] = kind
        if FREE.fullmatch(opcode) or "ConcatBitcast" in rest:
            continue
        sources = [types[o] for o in operands if o in types]
        moved = bytes_moved(kind, opcode, sources)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        found.append(
            {
                "operation": name,
                "of": hlo.layer(rest),
                "MB": round(moved / 1e6, 3),
                "writes": hlo.shapes(kind),
                "reads": [s for source in sources for s in hlo.shapes(source)],
                "cycles": int(cycles[1]) if cycles else 0,
            }
        )
    return found


def bytes_moved(kind, opcode, sources):
    """Operands and results that are in HBM; copies once each way."""
    if opcode.endswith("-start"):
        written = hlo.arrays(kind)[1 if opcode == "slice-start" else 0]
        ends = written[1], hlo.arrays(sources[0])[0][1]
        return written[0] * sum(ends)
    everything = [a for text in (kind, *sources) for a in hlo.arrays(text)]
    return sum(size for size, in_hbm in everything if in_hbm)
