"""What several TPU chips tell each other in a training step, by the compiler.

    python -m benchmarks tpu --chips 8 --layout model

The model is built on as many devices of the processor, under a
`keras.distribution`; the shards of its variables are then those of the step
that is compiled for the chips.

- `model`: KerasHub's layout map over one row of chips.
- `data`: the batch is cut up, and every chip has all variables.
- `fsdp`: the batch is cut up, and so is each kernel, along its first axis that
  the number of chips divides.
"""

import functools
import os
import re

from benchmarks import hlo
from benchmarks import planned

LAYOUTS = ("model", "data", "fsdp")
TOPOLOGIES = {4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4"}
RATIOS = ("moved MB", "collectives", "temporaries MiB")
LARGEST = 20
KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
AXES = ("batch", "model")


def set_environment(chips):
    """To be called before JAX is imported."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={chips}"


def main(args):
    set_environment(args.chips)
    planned.run(
        args,
        f"tpu-{args.chips}-{args.layout}",
        planned.title(args, f"{args.chips} chips, {args.layout}"),
        planned.chosen(args),
        lambda name: compile_step(name, args),
        measure,
        RATIOS,
    )


def compile_step(name, args):
    """A training step, compiled for one of the chips."""
    import keras
    import keras_hub

    # It stays in force: adapters ask for it where their layers are traced.
    keras.distribution.set_distribution(
        distribution(args.layout, args.chips, keras_hub.models.Llama3Backbone)
    )
    step = planned.training_step(name, args)
    return compile_for(args.layout, args.chips, *step)


def compile_for(layout, chips, step, state, batch):
    """A function of a sharded state and a batch, compiled for the chips."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec

    devices = topologies.get_topology_desc(
        TOPOLOGIES[chips], platform="tpu"
    ).devices
    mesh = Mesh(np.reshape(devices, mesh_shape(layout, chips)), AXES)

    def placed(x, spec):
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        )

    state = jax.tree.map(lambda x: placed(x, x.sharding.spec), state)
    by_example = PartitionSpec(AXES[0])
    batch = jax.tree.map(functools.partial(placed, spec=by_example), batch)
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def mesh_shape(layout, chips):
    return (1, chips) if layout == "model" else (chips, 1)


def distribution(layout, chips, backbone):
    """A layout of a class of backbones on as many devices of the processor."""
    import keras

    devices = keras.distribution.list_devices("cpu")[:chips]
    mesh = keras.distribution.DeviceMesh(
        mesh_shape(layout, chips), AXES, devices
    )
    if layout == "model":
        layouts = backbone.get_layout_map(mesh)
    else:
        layouts = keras.distribution.LayoutMap(mesh)
    if layout == "fsdp":
        # The heads of keys and values may be fewer than the chips.
        layouts[r".*(query|key|value|dense)/kernel"] = ("batch",)
        layouts[r".*attention_output/kernel"] = (None, None, "batch")
        layouts["token_embedding/embeddings"] = ("batch",)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name=AXES[0]
    )


def measure(compiled):
    """A row of the table, and the collectives that move most."""
    found = collectives(compiled.as_text())
    memory = compiled.memory_analysis()
    kinds = [op["kind"] for op in found]
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    row = {
        "moved MB": round(sum(op["MB"] for op in found), 2),
        "collectives": sum(op["times"] for op in found),
        **{kind: kinds.count(kind) for kind in KINDS},
        "temporaries MiB": round(memory.temp_size_in_bytes / 2**20),
        "HBM MiB": round(held / 2**20),
    }
    return row, sorted(found, key=lambda op: -op["MB"])[:LARGEST]


def collectives(text):
    """Each collective of a chip, by the larger of what it takes and gives.

    One that runs beside other work is part of several fusions, under one number
    of its channel.
    """
    computations = hlo.computations(text)
    found, times = {}, hlo.repeats(computations, hlo.entry_name(text))
    for name, lines in computations.items():
        types = {operation: kind for operation, kind, *_ in lines}
        for operation, kind, opcode, operands, rest in lines:
            match = COLLECTIVE.fullmatch(opcode)
            if not match:
                continue
            channel = re.search(r"channel_id=(\d+)", rest)
            ends = [kind, *(types[o] for o in operands if o in types)]
            sizes = [[size for size, _ in hlo.arrays(end)] for end in ends]
            if match[2]:
                # What starts gives its operands beside its results.
                sizes[0] = [max(sizes[0])]
            found[channel[1] if channel else operation] = {
                "collective": operation,
                "kind": match[1],
                "times": times.get(name, 1),
                "of": hlo.layer(rest),
                "MB": round(times.get(name, 1) * max(map(sum, sizes)) / 1e6, 4),
                "writes": hlo.shapes(kind),
                "in": name,
            }
    return list(found.values())
