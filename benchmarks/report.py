"""Environment, JSON files and tables."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re

PACKAGES = (
    "keras",
    "keras-hub",
    "jax",
    "tensorflow",
    "torch",
    "transformers",
    "peft",
    "numpy",
)


def environment(backend, threads, accelerator=None):
    """Machine, versions and date of a run."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "backend": backend,
        "device": accelerator or device(backend),
        "threads": threads,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.date.today().isoformat(),
        "versions": versions,
    }


def processor():
    """The processor's name, and its widest vectors, which decide its speed."""
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = {}
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    flags = fields.get("flags", "").split()
    for flag, vectors in (("avx512f", "AVX-512"), ("avx2", "AVX2")):
        if flag in flags:
            return f"{name} with {vectors}"
    return name


def device(backend):
    """The accelerator's name, or `"CPU"`."""
    if backend == "jax":
        import jax

        found = jax.devices()[0]
        return "CPU" if found.platform == "cpu" else found.device_kind
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        if found:
            details = tf.config.experimental.get_device_details(found[0])
            return details.get("device_name", "GPU")
        return "CPU"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def save(name, args, tables):
    """Writes a run's tables to a JSON file and prints them."""
    path = path_of(name, args)
    print(describe(write(path, args, tables)))
    for title, rows in tables.items():
        print(f"\n{title}\n\n{markdown(rows)}")
    print(f"\nWritten to {path}")


def path_of(name, args):
    quick = "-quick" if args.quick else ""
    return args.results / f"{name}-{args.backend}{quick}.json"


def write(path, args, tables, more=None, accelerator=None):
    """Writes tables, and more, to a JSON file; returns the environment."""
    found = environment(args.backend, args.threads, accelerator)
    run = {"environment": found, "quick": args.quick, "tables": tables}
    run |= more or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return found


def describe(found):
    """An environment in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return (
        f"{found['backend']} on {found['device']}; {found['machine']}, "
        f"{found['threads']} threads, {found['system']}; {found['date']}; "
        f"{versions}"
    )


def fill(path, part, text):
    """Puts a text between the comments `part` and `end` of a page."""
    page = path.read_text(encoding="utf-8")
    new = f"<!-- {part} -->\n\n{text}\n\n<!-- end -->"
    page, found = re.subn(
        f"<!-- {part} -->.*?<!-- end -->", lambda _: new, page, flags=re.S
    )
    if found != 1:
        raise ValueError(f"'{path}' has {found} parts '<!-- {part} -->'.")
    path.write_text(page, encoding="utf-8")


def markdown(rows):
    """A list of equal dictionaries as a table."""
    columns = list(rows[0])
    cells = [[cell(row[column]) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells))
        for i, column in enumerate(columns)
    ]

    def line(values):
        padded = (v.ljust(w) for v, w in zip(values, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(columns), rule, *map(line, cells)])


def cell(value):
    if isinstance(value, list):
        return " to ".join(cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:.3f}" if value < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
