"""Which models fit on which chip: the memory that a compiler plans for a step.

    pip install libtpu
    python -m benchmarks fits
    python -m benchmarks fits --chips 8 --models "Gemma 7B" "Llama 3 8B"
    python -m benchmarks fits --chip p100 --cuda cuda    # see `gpu_plan`

No weight is allocated and no chip is needed. A model is compiled with two
layers and with four; each further layer takes half of the difference. `--whole`
compiles all layers beside it, which shows the error of that. `--chips 8` cuts
the kernels over eight chips of a v5e, by KerasHub's layout map, and says what
one chip holds.
"""

import argparse
import functools
import json
import pathlib
import time

from benchmarks import abstract_models
from benchmarks import collectives
from benchmarks import described_gpus
from benchmarks import planned
from benchmarks import report
from benchmarks import tpu

GIB = 2**30
LAYOUT = "model"
# Name, memory in GiB, as data sheets say it.
TPUS = {"v5e": ("v5e:2x2", 16), "v6e": ("v6e:2x2", 32)}
# Layers, and the arguments of KerasHub's backbone.
SIZES = {
    "SmolLM2 135M": (30, "Llama", (49152, 9, 3, 576, 1536)),
    "Gemma 3 1B": (26, "Gemma3", (262144, 4, 1, 1152, 6912)),
    "Gemma 2B": (18, "Gemma", (256000, 8, 1, 2048, 32768)),
    "Gemma 7B": (28, "Gemma", (256000, 16, 16, 3072, 49152)),
    "Mistral 7B": (32, "Mistral", (32000, 32, 8, 4096, 14336)),
    "Llama 3 8B": (32, "Llama3", (128256, 32, 8, 4096, 14336)),
}
MORE = {
    "SmolLM2 135M": {"tie_word_embeddings": True},
    "Gemma 3 1B": {
        "head_dim": 256,
        "use_query_key_norm": True,
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_sliding_window_attention": True,
        "sliding_window_size": 512,
        "image_size": None,
        "vision_encoder": None,
    },
    "Gemma 2B": {"head_dim": 256},
    "Gemma 7B": {"head_dim": 256},
}
# What of a model is rematerialized. On JAX, Keras passes `training` to a
# rematerialized layer as a tensor, which the dropout of other families refuses.
BLOCKS = {"Gemma": "decoder_block", "Gemma3": "decoder_block"}
# Base (`-` is the policy), method, and whether activations are rematerialized.
ROWS = (
    ("-", "full", False),
    ("-", "full", True),
    ("-", "Keras LoRA r=8", False),
    ("-", "default", False),
    ("-", "default", True),
    ("int8", "default", False),
    ("int8", "default", True),
    ("int4", "default", True),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--chip", default="v5e", choices=[*TPUS, *described_gpus.DATA_SHEETS]
    )
    command.add_argument("--chips", type=int, default=1, choices=(1, 8))
    command.add_argument("--cuda", type=pathlib.Path)
    command.add_argument("--models", nargs="+", default=SIZES, choices=SIZES)
    command.add_argument("--policy", default="bfloat16")
    command.add_argument("--batch", type=int, default=1)
    command.add_argument("--tokens", type=int, default=1024)
    command.add_argument(
        "--rows",
        nargs="+",
        type=int,
        default=range(len(ROWS)),
        help="places in `ROWS`; all by default",
    )
    command.add_argument("--whole", action="store_true")


def main(args):
    compile_for, memory = compiler(args)
    chip = args.chip if args.chips == 1 else f"{args.chip}-{args.chips}"
    title = f"{args.batch} x {args.tokens} tokens, {args.policy}, {chip}"
    path = report.path_of(f"fits-{chip}-{args.policy}", args)
    rows = []
    if path.exists():
        rows = json.loads(path.read_text("utf-8"))["tables"].get(title, [])
    for name in args.models:
        for base, method, remat in (ROWS[i] for i in args.rows):
            mode = remat_mode(name) if remat else None
            started = time.perf_counter()
            found = gibibytes(compile_for, args, name, base, method, mode)
            row = {
                "model": name,
                "base": args.policy if base == "-" else base,
                "method": method,
                "remat": mode["mode"].replace("_", " ") if mode else "no",
                **found,
                "fits": "yes" if found["GiB"] <= memory else "no",
            }
            seconds = time.perf_counter() - started
            print(f"{row} ({seconds:.0f} s to compile)", flush=True)
            # Rows of other runs stay.
            rows = [r for r in rows if _key(r) != _key(row)] + [row]
            rows.sort(key=lambda r: [*SIZES].index(r["model"]))
            report.write(path, args, {title: rows}, {"largest operations": {}})
    print(report.markdown(rows))


def _key(row):
    return [row[name] for name in ("model", "base", "method", "remat")]


def compiler(args):
    """A function that compiles for the chip, and the chip's memory in GiB."""
    if args.chips > 1:
        if args.chip != "v5e":
            raise SystemExit("--chips needs --chip v5e")
        tpu.set_environment()
        collectives.set_environment(args.chips)
        compile_for = functools.partial(
            collectives.compile_for, LAYOUT, args.chips
        )
        return compile_for, TPUS[args.chip][1]
    if args.chip in TPUS:
        tpu.set_environment()
        topology, memory = TPUS[args.chip]
        device = tpu.device(topology)
    else:
        described_gpus.set_environment(args.cuda)
        device = described_gpus.device(args.chip, args.cuda)
        memory = described_gpus.DATA_SHEETS[args.chip][7]
    return functools.partial(planned.compile_for, device), memory


def gibibytes(compile_for, args, name, base, method, remat):
    """What is planned for all layers, by that for two and for four."""
    layers, *_ = SIZES[name]

    def planned(count):
        step = training_step(args, name, count, base, method, remat)
        memory = compile_for(*step).memory_analysis()
        taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        given = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return (taken + given) / GIB

    two, four = planned(2), planned(4)
    if four < two:
        raise SystemExit(
            f"{name}: four layers are planned with {four:.3f} GiB, two with "
            f"{two:.3f}, which says nothing of {layers}. The step is too "
            "small: take more --tokens or a larger --batch."
        )
    found = {"GiB": round(two + (layers - 2) * (four - two) / 2, 2)}
    if args.whole:
        found["GiB, whole"] = round(planned(layers), 2)
    return found


def remat_mode(name):
    """Arguments of `RematScope`: what Keras can do for a model on JAX."""
    layers, family, _ = SIZES[name]
    if family not in BLOCKS:
        return {"mode": "activations"}
    names = [f"{BLOCKS[family]}_{i}" for i in range(layers)]
    return {"mode": "list_of_layers", "layer_names": names}


def training_step(args, name, layers, base, method, remat):
    import jax
    import keras
    import keras_hub

    def build():
        with keras.RematScope(**(remat or {"mode": None})):
            model = task(args.policy, name, layers)
        if base != "-":
            model.quantize(base)
        adapt(model, method)
        model.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.optimizer.build(model.trainable_variables)
        return model

    if args.chips > 1:
        family = getattr(keras_hub.models, f"{SIZES[name][1]}Backbone")
        # It stays in force: adapters ask for it where layers are traced.
        keras.distribution.set_distribution(
            collectives.distribution(LAYOUT, args.chips, family)
        )
    model = abstract_models.build(build)
    tokens = jax.ShapeDtypeStruct((args.batch, args.tokens), "int32")
    batch = {"token_ids": tokens, "padding_mask": tokens}, tokens
    return model.train_step, abstract_models.state_of(model), batch


def task(policy, name, layers):
    import keras
    import keras_hub

    keras.config.set_dtype_policy(policy)
    _, family, sizes = SIZES[name]
    vocabulary, heads, of_keys, width, inner = sizes
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_query_heads=heads,
        num_key_value_heads=of_keys,
        hidden_dim=width,
        intermediate_dim=inner,
        **MORE.get(name, {}),
    )
    return getattr(keras_hub.models, f"{family}CausalLM")(
        backbone=backbone, preprocessor=None
    )


def adapt(model, method):
    import keras_ether

    if method == "default":
        keras_ether.apply(model, seed=0)
    elif method != "full":
        model.backbone.enable_lora(8)
