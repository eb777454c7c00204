"""Peak memory of a training step, each method in a process of its own."""

import json
import pathlib
import sys

from benchmarks import processes
from benchmarks import report

METHODS = (
    "limit",
    "head only",
    "full",
    "ETHER n=4",
    "ETHER+ n=1",
    "ETHER+ n=4",
    "ETHER+ n=32",
    "Keras LoRA r=8",
    "authors' algorithm n=1",
)
QUICK = ("limit", "ETHER n=4", "ETHER+ n=4", "Keras LoRA r=8")
BATCH = 32
# Large tensors go back to the system when they are freed, so that the
# high-water mark is of what lives and not of what an allocator keeps.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def main(args):
    rows = []
    for name in QUICK if args.quick else METHODS:
        measured = processes.measure("memory", name, **ENVIRONMENT)
        rows.append({"method": name, **measured})
        print(f"{name}: {rows[-1]}", flush=True)
    limit = rows[0]["step_mib"]
    for row in rows:
        row["ratio"] = round(row["step_mib"] / limit, 3)
    title = f"MiniLM's size, {BATCH} x 128 tokens, all linear maps"
    report.save("memory", args, {title: rows})


def measure(name):
    """Peak of one step after two others, in MiB."""
    from benchmarks import models
    from benchmarks import train
    from benchmarks import variants

    model, inputs, labels = models.minilm(batch=BATCH)
    variants.VARIANTS[name](model, "all-linear")
    train.compile_model(model)
    step = train.step(model, inputs, labels)
    for _ in range(2):
        step()
    before = reset_peak()
    step()
    return {
        "peak_mib": round(peak() / 2**20),
        "step_mib": round((peak() - before) / 2**20),
    }


def reset_peak():
    """Starts the count anew; returns the bytes in use."""
    statistics = accelerator()
    if statistics is not None:
        return statistics(reset=True)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak():
    statistics = accelerator()
    return status("VmHWM") if statistics is None else statistics()


def _torch_peak(reset=False):
    import torch

    if reset:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return torch.cuda.max_memory_allocated()


def _tensorflow_peak(reset=False):
    from tensorflow import config

    found = config.experimental.get_memory_info("GPU:0")
    if reset:
        config.experimental.reset_memory_stats("GPU:0")
        return found["current"]
    return found["peak"]


def _jax_peak(reset=False):
    # JAX cannot start its count anew: its peak is the process's own.
    import jax

    found = jax.devices()[0].memory_stats()
    return found["bytes_in_use" if reset else "peak_bytes_in_use"]


COUNTS = {
    "jax": _jax_peak,
    "tensorflow": _tensorflow_peak,
    "torch": _torch_peak,
}


def accelerator():
    """The backend's own count on an accelerator, `None` on a CPU."""
    import keras

    backend = keras.backend.backend()
    return None if report.device(backend) == "CPU" else COUNTS[backend]


def status(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
