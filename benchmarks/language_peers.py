"""PEFT on `transformers`, and this package, on real language models and data.

    python -m benchmarks language_peers [--models smollm2_135m_instruct ...]

Both read the same weights (`examples/real_models`) and the same tokens of film
reviews, and adapt query and value projections: PEFT's LoRA, OFT, HRA, and the
default of `keras_ether.apply`, with PyTorch's and Keras's Adam. Each method is
trained at each rate, in a process of its own; the rate with the least loss on
the validation part is reported, with its loss on the test part. Time is that of
the processor, since other work on the machine would change the clock's.
"""

import tempfile

from benchmarks import processes
from benchmarks import report

MODELS = ("smollm2_135m_instruct", "gemma3_270m")
OURS = "default of apply"
METHODS = (OURS, "PEFT LoRA r=8", "PEFT OFT, blocks of 32", "PEFT HRA r=8")
BATCH, LENGTH = 4, 32


def add_arguments(parser):
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, default=(3e-4, 1e-3, 3e-3, 1e-2)
    )
    parser.add_argument("--steps", type=int, default=24)


def main(args):
    rates = ", ".join(f"{rate:g}" for rate in args.rates)
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows = [best(model, m, args, folder) for m in args.methods]
        title = (
            f"{model}, film reviews, {args.steps} steps of {BATCH} x {LENGTH} "
            f"tokens, rates {rates}"
        )
        report.save(f"language-peers-{model}", args, {title: rows})


def best(model, method, args, folder):
    """The row of a method, at the rate with the least validation loss."""
    found = []
    for rate in args.rates:
        settings = map(str, (model, method, rate, args.steps, folder))
        found.append(processes.measure("language_run", *settings))
        print(found[-1], flush=True)
    chosen = min(found, key=lambda run: run["valid"])
    return {
        "method": method,
        "parameters": f"{chosen['parameters']:,}",
        "rate": f"{chosen['rate']:g}",
        "loss before": f"{chosen['before']:.3f}",
        "loss after": f"{chosen['test']:.3f}",
        "steps a CPU second": f"{1 / min(r['step'] for r in found):.2f}",
        "MB to train": f"{min(r['bytes'] for r in found) / 1e6:.0f}",
        "file, MB": f"{chosen['file'] / 1e6:.2f}",
        "load, CPU s": f"{min(r['load'] for r in found):.1f}",
        "first token, CPU s": f"{min(r['first'] for r in found):.2f}",
    }
