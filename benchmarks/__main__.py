"""Speed and memory, as ratios within one run.

    python -m benchmarks train --backend jax

Backend and threads have to be set before Keras is imported, so each benchmark
is imported after its arguments are read.
"""

import argparse
import ctypes
import ctypes.util
import importlib
import os
import pathlib

BENCHMARKS = {
    "train": "training steps by method, over the step of a frozen model",
    "infer": "inference: base, active, merged",
    "bank": "many adapters on one base, over the base's `predict`",
    "memory": "peak memory of a training step by method",
    "apply": "peak memory of `apply`, over the model",
    "tpu": "memory traffic of a step compiled for a TPU, without one",
    "tpu_bank": "the same of a bank's `predict`, over the base's",
    "gpu_plan": "kernels and traffic of a step compiled for a GPU, without one",
    "fits": "memory of a step of whole models, planned for a chip",
    "kernels": "kernels that PyTorch starts in a training step",
    "gpu": "step time and memory on an accelerator, in 8 minutes",
    "peers": "PEFT on transformers, each framework over its own limit",
    "language_peers": "PEFT and the default, on two pretrained language models",
    "tables": "tables and plots of benchmarks/README.md, from the results",
}
TORCH_ONLY = ("peers", "language_peers", "kernels")
JAX_ONLY = ("tpu", "tpu_bank", "gpu_plan", "fits")
CASES = ("minilm", "minilm-default", "decoder", "decoder-int8")
CASES += ("decoder-int4", "bert-base")
# These take options of their own.
WITH_OPTIONS = (*JAX_ONLY, "kernels", "gpu", "language_peers")
# How long each model of a benchmark is measured by default.
SECONDS = {"train": 150, "infer": 60, "bank": 60}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, text in BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--results",
            type=pathlib.Path,
            default=pathlib.Path(__file__).parent / "results",
            help="folder of the JSON files",
        )
        if name == "tables":
            continue
        backends = ["jax", "tensorflow", "torch"]
        if name in TORCH_ONLY:
            backends = ["torch"]
        if name in JAX_ONLY:
            backends = ["jax"]
        command.add_argument(
            "--backend",
            choices=backends,
            default=backends[0],
        )
        command.add_argument("--threads", type=int, default=2)
        if name == "train":
            command.add_argument(
                "--cases",
                nargs="+",
                choices=CASES,
                help="models and targets; all of them by default",
            )
        if name in SECONDS:
            command.add_argument(
                "--seconds",
                type=int,
                default=SECONDS[name],
                help="after which no further round of a model starts",
            )
        command.add_argument(
            "--quick",
            action="store_true",
            help="the main rows only, under 3 minutes",
        )
        if name in WITH_OPTIONS:
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(command)
    args = parser.parse_args()
    if args.benchmark != "tables":
        pin(args.backend, args.threads)
    importlib.import_module(f"benchmarks.{args.benchmark}").main(args)


def pin(backend, threads):
    """Sets the backend, and holds this process to as many cores as threads."""
    prepare(backend, threads)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, cores)


def prepare(backend, threads):
    """Sets what has to be known before Keras is imported."""
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):
        os.environ[name] = str(threads)
    keep_pages()


def keep_pages():
    """Lets glibc's allocator keep what is freed, as jemalloc would.

    By its defaults every large tensor gets fresh pages from the system, one
    fault each 4 KiB. Adding a bias to 6 MiB then takes ten times as long as
    the addition, and how often that happens depends on what else is alive.
    """
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**31 - 1)


if __name__ == "__main__":
    main()
