"""What ETHER adapts in every backbone of KerasHub, and how many numbers train.

    python -m benchmarks.coverage --output benchmarks/COVERAGE.md

The backbones are the tiny random ones of the tests; the second table has five
real models at their published widths. Needs KerasHub and the tests' folder.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_ether
from tests import hub_backbones
from tests.hub import real_width
from tests.hub.entry import build

METHODS = ("ether", "ether+")
HEAD = """# Coverage

`python -m benchmarks.coverage --output benchmarks/COVERAGE.md` writes this
page.

## Every backbone of KerasHub

The models are tiny and random, with `rank_blocks=2` and `targets="all-linear"`.
Convolutional networks have one block and `targets="all"`. "Layers" counts the
adapted layers. "Skipped" lists layers with a kernel that have no adapter.
"""
REAL = """
## Real models

The table counts all linear layers at their published widths, with
`rank_blocks=2`. For Stable Diffusion 3 it counts the diffusion transformer. The
number of parameters is the sum of `d` for ETHER and of `2 (d + f)` for ETHER+,
for any `rank_blocks`.
"""
# By hand, from runs of the tests.
LIVES = """
## Run with real weights

`python -m pytest -m nightly tests/real_models_test.py` ran these models on two
cores, with weights from Python packages (`examples/real_models`). "All" is the
exact start, a falling loss, `disabled`, an adapter file, resuming, merging,
`remove`, a `.keras` file or preset (where Keras can load that of the plain
model), exports, int8 and int4 bases, and a bank of three. For language models
it is also `generate` of the bank, and a LoRA folder over which PEFT answers
alike. Over int8, SmolLM2, Gemma 3 and Whisper train at 1e-4, where the first
two hardly learn.

| Backbone | Model | PyTorch, JAX | TensorFlow |
| --- | --- | --- | --- |
| BertBackbone | all-MiniLM-L6-v2 | all | all |
| Llama3Backbone | SmolLM2-135M | all | all but ONNX (2) |
| Gemma3Backbone | Gemma 3 270M | all | all but ONNX (2) |
| DINOV2Backbone | DINOv2 ViT-S/14 | all | all but ONNX (1) |
| EfficientNetBackbone | EfficientNet-Lite0 | all | all |
| WhisperBackbone | Whisper tiny.en | all | all but ONNX (1) |

(1) tf2onnx writes GELU as an operation that onnxruntime lacks. (2) tf2onnx took
more than 14 GB.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--backbones", nargs="+", metavar="CLASS")
    args = parser.parse_args()
    names = args.backbones or list(hub_backbones.ENTRIES)
    text = HEAD + table(
        ("Backbone", "Layers", "ETHER", "ETHER+", "Skipped"),
        (backbone_row(name, hub_backbones.ENTRIES[name]) for name in names),
    )
    text += REAL + table(
        ("Model", "Layers", "ETHER", "ETHER+"),
        (real_row(*item) for item in real_width.ENTRIES.items()),
    )
    text += LIVES
    print(text)
    args.output.write_text(text, encoding="utf-8")


def table(columns, rows):
    """A Markdown table; all columns but the first and the fifth are numbers."""
    rules = ["---" if i in (0, 4) else "---:" for i in range(len(columns))]
    return (
        "".join(
            f"\n| {' | '.join(str(cell) for cell in row)} |"
            for row in (columns, rules, *rows)
        )
        + "\n"
    )


def backbone_row(name, entry):
    if keras.backend.backend() == "torch" and entry.torch_needs:
        lacking = f"not built on PyTorch without {entry.torch_needs}"
        return name, "", "", "", lacking
    model = build(name, entry)
    reports = [
        keras_ether.plan(
            model,
            rank_blocks=entry.rank_blocks,
            method=method,
            targets=entry.targets,
            exclude=entry.exclude,
            print_fn=str,
        )
        for method in METHODS
    ]
    numbers = [f"{report.trainable:,}" for report in reports]
    return name, len(reports[0].rows), *numbers, reasons(reports[0])


def reasons(report):
    """Skipped layers by reason, as `reason: Class (count), ...`."""
    counts = {}
    for skipped in report.skipped:
        classes = counts.setdefault(skipped.reason, {})
        classes[skipped.layer_class] = classes.get(skipped.layer_class, 0) + 1
    return "; ".join(
        f"{reason}: "
        + ", ".join(f"{name} ({count})" for name, count in classes.items())
        for reason, classes in counts.items()
    )


def real_row(name, entry):
    rows = [entry.rows(method) for method in METHODS]
    layers = sum(times for _, times in rows[0])
    counts = [
        sum(row.parameters * times for row, times in found) for found in rows
    ]
    return name, layers, *(f"{count:,}" for count in counts)


if __name__ == "__main__":
    main()
