"""PEFT on `transformers`, and this package on KerasHub, over their own limits.

The same pretrained weights, all-MiniLM-L6-v2, and the same linear maps in both
frameworks, on PyTorch. Steps of all methods are timed in turn in one process;
each is divided by the step of its own framework's limit.
"""

import keras
import keras_hub
import numpy as np
import torch
import transformers

from benchmarks import peft_models
from benchmarks import report
from benchmarks import timing
from benchmarks import train
from benchmarks import variants
from examples.real_models import minilm

BATCH, LENGTH = 8, 128
LINEAR_MAPS = r".*encoder.*\.(query|key|value|dense)"
OURS = ("ETHER n=1", "ETHER n=4", "ETHER+ n=1", "ETHER+ n=4", "Keras LoRA r=8")
PEERS = tuple(peft_models.ADAPTERS)


def main(args):
    inputs, labels = batch()
    steps = {}
    for framework, make, names in (
        ("KerasHub", keras_step, OURS),
        ("transformers", peft_step, PEERS),
    ):
        for name in ("limit", *names):
            steps[framework, name] = make(name, inputs, labels)
    times = timing.alternate(
        steps, rounds=40, seconds=60 if args.quick else 240
    )
    rows = []
    for framework in ("KerasHub", "transformers"):
        own = {n: t for (place, n), t in times.items() if place == framework}
        rows += [
            {"framework": framework, **row}
            for row in timing.ratios(own, reference="limit", key="method")
        ]
    title = "all-MiniLM-L6-v2, 8 x 128 tokens, all linear maps"
    report.save("peers", args, {title: rows})


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 30000, (BATCH, LENGTH), dtype="int64")
    return tokens, rng.integers(0, 2, BATCH, dtype="int64")


def keras_step(name, tokens, labels):
    model = keras_hub.models.BertTextClassifier(
        keras_hub.models.Backbone.from_preset(minilm.preset(), dropout=0.0),
        num_classes=2,
        preprocessor=None,
        dropout=0.0,
    )
    variants.VARIANTS[name](model, "all-linear")
    train.compile_model(model)
    inputs = {
        "token_ids": tokens,
        "padding_mask": np.ones_like(tokens),
        "segment_ids": np.zeros_like(tokens),
    }
    return train.step(model, inputs, labels)


def peft_step(name, tokens, labels):
    """A step of the same model from `transformers`, with Adam."""
    keras.utils.set_random_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm.preset(),
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    if name == "limit":
        for path, weight in model.named_parameters():
            weight.requires_grad = (
                path.startswith("classifier")
                or path == "bert.embeddings.LayerNorm.weight"
            )
    else:
        model = peft_models.adapted(model, name, LINEAR_MAPS, "SEQ_CLS")
    tokens = torch.from_numpy(tokens)
    arguments = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
        "labels": torch.from_numpy(labels),
    }
    optimizer = peft_models.adam(model.train())
    return lambda: peft_models.update(optimizer, model(**arguments).loss)
