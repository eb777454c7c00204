"""Data of BIG-bench.

It asks that its data be no part of what a published model is trained on: what
an example learns from them is thrown away, and no figure is a benchmark's.
"""

import json

from . import packages

_FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks"
CIFAR10 = f"{_FOLDER}/cifar10_classification/base64/task.json"
INTENTS = f"{_FOLDER}/intent_recognition/task.json"
PACKAGE = packages.Package(
    name="bigbench",
    version="1.0.0",
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    licence="Apache-2.0 (of CIFAR-10's pictures none is stated)",
    megabytes=358,
    files=(CIFAR10, INTENTS),
)


def examples(task: str) -> list[tuple[str, str]]:
    """Pairs of an input and its right answer."""
    path = packages.fetch(PACKAGE) / task
    return [
        (example["input"], max(scores, key=scores.get))
        for example in json.loads(path.read_text("utf-8"))["examples"]
        for scores in [example["target_scores"]]
    ]
