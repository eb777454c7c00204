"""Step time and peak memory on an accelerator, in one command.

    python -m benchmarks gpu

A decoder of a billion random parameters, bfloat16, 4 x 1,024 tokens, on JAX and
on PyTorch (eager and compiled), each row in a process of its own so that its
peak of memory is its own. What matters most comes first, and the file of
results is written after each row: a run that is cut off leaves what it had.
"""

import argparse
import json
import subprocess
import sys
import time

from benchmarks import memory
from benchmarks import processes
from benchmarks import report

MODES = ("jax", "torch", "torch compiled")
METHODS = (
    "limit",
    "ETHER n=4",
    "ETHER+ n=4",
    "Keras LoRA r=8",
    "ETHER n=1",
    "ETHER+ n=1",
    "ETHER n=32",
    "head only",
    "full",
)
PEERS = {
    "limit": None,
    "LoRA r=8": "PEFT LoRA r=8",
    "OFT": "PEFT OFT, blocks of 32",
}
GENERATE = ("base", "active", "merged")
SIZES = {
    "tiny": {"layers": 1, "width": 32, "vocabulary": 64, "tokens": 8},
    "1 B": {"layers": 16, "width": 2048, "vocabulary": 32000, "tokens": 1024},
}
BATCH = 4
STEPS = 10


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tiny", action="store_true", help="a toy, to try the command on a CPU"
    )
    command.add_argument("--minutes", type=float, default=8)
    command.add_argument("--modes", nargs="+", default=MODES, choices=MODES)


def main(args):
    end = time.monotonic() + 60 * args.minutes
    rows, size = [], "tiny" if args.tiny else "1 B"
    for job in jobs(args):
        left = end - time.monotonic()
        if left <= 0:
            print("The time is up; rows are missing.", flush=True)
            break
        row = in_process(job, size, left)
        rows.append(row)
        compare(rows)
        save(args, size, rows)
        print(row, flush=True)
    done = [row for row in rows if "error" not in row]
    if done:
        print(report.markdown(done))


def jobs(args):
    """`(mode, what, name)` of each row, what matters most first."""
    eager = [m for m in args.modes if m != "torch compiled"]
    quick = METHODS[:4]
    first = [(mode, "step", name) for name in quick for mode in eager]
    generate = [(m, "generate", name) for m in eager for name in GENERATE]
    rest = [(mode, "step", name) for name in METHODS[4:] for mode in eager]
    compiled = [
        (mode, "step", name)
        for mode in args.modes
        if mode not in eager
        for name in (quick if args.quick or args.tiny else METHODS)
    ]
    peers = [("torch", "peer", n) for n in PEERS if "torch" in args.modes]
    if args.quick:
        return first
    return first + peers + generate + compiled + rest


def in_process(job, size, seconds):
    """One row, or one that says why there is none."""
    mode, what, name = job
    row = {"mode": mode, "what": what, "name": name}
    backend = mode.split()[0]
    try:
        measured = processes.measure(
            "gpu", *job, size, timeout=seconds, KERAS_BACKEND=backend
        )
    except subprocess.TimeoutExpired:
        return {**row, "error": "the time is up"}
    except subprocess.CalledProcessError as error:
        # Out of memory, or a library that is not installed.
        lines = error.stderr.strip().splitlines() or [str(error)]
        return {**row, "error": lines[-1][:300]}
    return {**row, **measured}


def compare(rows):
    """Adds the ratio to the first row of the same mode and kind."""
    for row in rows:
        first = next(
            r for r in rows if all(r[k] == row[k] for k in ("mode", "what"))
        )
        for key in ("ms", "peak MiB"):
            if key in row and key in first:
                row[f"{key} ratio"] = round(row[key] / first[key], 3)


def save(args, size, rows):
    device = next((r["device"] for r in rows if "device" in r), "unknown")
    tables = {f"Decoder, {size}, bfloat16, {device}": rows}
    path = args.results / ("gpu-tiny.json" if args.tiny else "gpu.json")
    report.write(path, args, tables, accelerator=device)


# In the process of a row.


def worker(mode, what, name, size):
    sizes = SIZES[size]
    if what == "peer":
        run = peer(name, **sizes)
    elif what == "generate":
        run = generation(name, **sizes)
    else:
        run = training(name, mode == "torch compiled", **sizes)
    for _ in range(3):
        run()
    times = []
    for _ in range(STEPS):
        before = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - before))
    row = {
        "ms": round(sorted(times)[len(times) // 2], 3),
        "peak MiB": round(memory.peak() / 2**20),
        "device": report.device(mode.split()[0]),
    }
    print(json.dumps(row))


def decoder(layers, width, vocabulary):
    import keras
    import keras_hub

    keras.config.set_dtype_policy("bfloat16")
    keras.utils.set_random_seed(0)
    heads = max(width // 64, 2)
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_query_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
        hidden_dim=width,
        intermediate_dim=4 * width,
        tie_word_embeddings=True,
    )
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)


def training(name, compiled, layers, width, vocabulary, tokens):
    import numpy as np

    from benchmarks import train
    from benchmarks import variants

    model = decoder(layers, width, vocabulary)
    variants.VARIANTS[name](model, "all-linear")
    train.compile_model(model, **({"jit_compile": True} if compiled else {}))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary, (BATCH, tokens), dtype="int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return train.step(model, inputs, np.roll(ids, -1, axis=1))


def generation(name, layers, width, vocabulary, tokens):
    """Greedy, a prompt of an eighth of the tokens and as many behind it."""
    import numpy as np

    import keras_ether

    model = decoder(layers, width, vocabulary)
    model.compile(sampler="greedy")
    if name != "base":
        keras_ether.apply(model, rank_blocks=4, targets="all-linear", seed=0)
    if name == "merged":
        keras_ether.merge(model)
    prompt = max(tokens // 8, 2)
    ids = np.ones((BATCH, 2 * prompt), "int32")
    mask = np.zeros_like(ids)
    mask[:, :prompt] = 1
    inputs = {"token_ids": ids, "padding_mask": mask}
    return lambda: model.generate(inputs, stop_token_ids=None)


def peer(name, layers, width, vocabulary, tokens):
    """PEFT on the same decoder from `transformers`."""
    import torch
    import transformers

    from benchmarks import peft_models

    heads = max(width // 64, 2)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(place):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=max(heads // 4, 1),
                tie_word_embeddings=True,
            )
        ).to(torch.bfloat16)
    if name == "limit":
        model.requires_grad_(False)
        model.model.layers[0].input_layernorm.requires_grad_(True)
    else:
        model = peft_models.adapted(model, PEERS[name], "all-linear")
    optimizer = peft_models.adam(model.to(place).train())
    ids = torch.randint(0, vocabulary, (BATCH, tokens), device=place)

    def step():
        loss = model(input_ids=ids, labels=ids).loss
        return peft_models.update(optimizer, loss).item()

    return step


if __name__ == "__main__":
    worker(*sys.argv[1:])
