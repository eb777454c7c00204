"""Memory traffic of a training step on a TPU, as its compiler plans it.

libtpu compiles for a TPU on a machine without one. What it plans is the same at
each run, so that two versions of the package can be compared to the last byte:
no clock, no noise.

    pip install libtpu
    python -m benchmarks tpu
"""

import argparse
import collections
import functools
import json
import os
import re
import time

from benchmarks import report

METHODS = (
    "limit",
    *(f"{m} n={n}" for m in ("ETHER", "ETHER+") for n in (1, 4, 8, 32)),
    "Keras LoRA r=8",
)
QUICK = ("limit", "ETHER n=4", "ETHER+ n=4")
LARGEST = 20


def add_arguments(
    command: argparse.ArgumentParser, methods: tuple[str, ...] = METHODS
) -> None:
    command.add_argument("--chip", default="v5e:2x2")
    command.add_argument("--policy", default="bfloat16")
    command.add_argument("--width", type=int, default=2048)
    command.add_argument("--layers", type=int, default=2)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--tokens", type=int, default=1024)
    command.add_argument(
        "--methods", nargs="+", default=None, choices=methods, metavar="METHOD"
    )


def main(args):
    rows, profiles = [], {}
    for name in args.methods or (QUICK if args.quick else METHODS):
        started = time.perf_counter()
        compiled = compile_step(name, args)
        row, profiles[name] = measure(compiled)
        row = {"method": name, **row}
        rows.append(row)
        limit = next((r for r in rows if r["method"] == "limit"), None)
        for key in ("HBM GB", "Gflops", "temporaries MiB"):
            ratio = row[key] / (limit[key] or 1) if limit else 0.0
            row[f"{key.split()[0]} ratio"] = round(ratio, 3)
        seconds = time.perf_counter() - started
        print(f"{row} ({seconds:.0f} s to compile)", flush=True)
        save(args, rows, profiles)
    print(report.markdown(rows))


def save(args, rows, profiles):
    """Writes what is there so far: compiling all takes half an hour."""
    args.results.mkdir(parents=True, exist_ok=True)
    title = (
        f"{args.layers} layers, {args.width} wide, {args.batch} x "
        f"{args.tokens} tokens, {args.policy}, {args.chip}"
    )
    run = {
        "environment": report.environment("jax", args.threads),
        "quick": args.quick,
        "tables": {title: rows},
        "largest operations": profiles,
    }
    quick = "-quick" if args.quick else ""
    path = args.results / f"tpu-jax{quick}.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def compile_step(name, args):
    """A training step of a decoder, compiled for the chip."""
    set_environment()
    step, state, batch = training_step(name, args)
    return compile_for(args.chip, step, state, batch)


def set_environment():
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # It compiles and opens no device, so that several may run.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compile_for(chip, step, state, batch, donated=(0,)):
    """A function of a state and a batch, compiled for the chip."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    chips = topologies.get_topology_desc(chip, platform="tpu").devices
    place = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(chips[0])
    )
    arguments = jax.tree.map(lambda x: place(x.shape, x.dtype), (state, batch))
    return jax.jit(step, donate_argnums=donated).lower(*arguments).compile()


def decoder(args):
    """A Llama of random weights."""
    import keras
    import keras_hub

    keras.config.set_dtype_policy(args.policy)
    heads = max(args.width // 128, 2)
    return keras_hub.models.Llama3Backbone(
        vocabulary_size=1024,
        num_layers=args.layers,
        num_query_heads=heads,
        num_key_value_heads=heads // 2,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
    )


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


# What an HLO module says. A layout with `S(1)` is in the chip's own memory.

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4}
BYTES |= {"s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]({{[^}}]*}})?")
# Nothing moves in them, or what moves is counted where it starts.
FREE = re.compile(r"parameter|tuple|get-tuple-element|bitcast|constant|.*-done")


def operations(text):
    """Operations of the entry computation, by what they move in HBM."""
    types, found = {}, []
    for name, kind, opcode, operands, rest in entry(text):
        types[name] = kind
        if FREE.fullmatch(opcode) or "ConcatBitcast" in rest:
            continue
        sources = [types[o] for o in operands if o in types]
        moved = bytes_moved(kind, opcode, sources)
        layer = re.search(r'op_name="([^"]*)"', rest)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        found.append(
            {
                "operation": name,
                "of": layer[1].replace("\\'", "'") if layer else "",
                "MB": round(moved / 1e6, 3),
                "writes": shapes(kind),
                "reads": [s for source in sources for s in shapes(source)],
                "cycles": int(cycles[1]) if cycles else 0,
            }
        )
    return found


def bytes_moved(kind, opcode, sources):
    """Operands and results that are in HBM; copies once each way."""
    if opcode.endswith("-start"):
        written = arrays(kind)[1 if opcode == "slice-start" else 0]
        ends = written[1], arrays(sources[0])[0][1]
        return written[0] * sum(ends)
    everything = [a for text in (kind, *sources) for a in arrays(text)]
    return sum(size for size, in_hbm in everything if in_hbm)


def entry(text):
    """`(name, type, opcode, operands, rest)` of each line."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("ENTRY"):
            break
    for line in lines:
        if line.startswith("}"):
            return
        match = re.match(r"\s+(?:ROOT )?%(\S+) = (.*)$", line)
        if not match:
            continue
        name, text = match.groups()
        end = closing(text) if text[0] == "(" else text.index(" ")
        kind, text = text[:end], text[end:].strip()
        opcode, _, _ = text.partition("(")
        text = text[len(opcode) :]
        end = closing(text)
        operands = re.findall(r"%([\w.-]+)", text[:end])
        yield name, kind, opcode, operands, text[end:]


def closing(text):
    """Where the bracket that `text` begins with has closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i + 1
    raise ValueError(f"A bracket is open: {text[:80]!r}")


def arrays(text):
    """Size in bytes of each array of a type, and whether it is in HBM."""
    found = []
    for dtype, sizes, layout in ARRAY.findall(text):
        size = BYTES[dtype]
        for length in filter(None, sizes.split(",")):
            size *= int(length)
        found.append((size, "S(" not in layout))
    return found


def shapes(text):
    """The arrays of a type, those in the chip's own memory in brackets."""
    counted = collections.Counter(
        f"({d}[{s}])" if "S(" in layout else f"{d}[{s}]"
        for d, s, layout in ARRAY.findall(text)
    )
    return [f"{n} x {s}" if n > 1 else s for s, n in counted.items()]
