"""Training steps by method, over the limit."""

import keras
import numpy as np

from benchmarks import models
from benchmarks import report
from benchmarks import timing
from benchmarks import variants


def main(args):
    names = variants.QUICK if args.quick else tuple(variants.VARIANTS)
    cases = {
        "MiniLM's size, 8 x 128 tokens, all linear maps": (
            models.minilm,
            "all-linear",
            120,
        ),
    }
    if not args.quick:
        cases |= {
            "MiniLM's size, 8 x 128 tokens, default targets": (
                models.minilm,
                None,
                120,
            ),
            "Decoder, 4 x 256 tokens, all linear maps": (
                models.decoder,
                "all-linear",
                120,
            ),
            "BERT-base's size, 8 x 128 tokens, all linear maps": (
                models.bert_base,
                "all-linear",
                240,
            ),
        }
    tables = {}
    for title, (build, targets, seconds) in cases.items():
        seconds = 60 if args.quick else seconds
        tables[title] = measure(build, targets, names, seconds)
        keras.backend.clear_session()
    report.save(args.results, "train", args, tables)


def measure(build, targets, names, seconds):
    """One table: a step of each variant, in turn."""
    trainable, steps = {}, {}
    for name in names:
        model, inputs, labels = build()
        variants.VARIANTS[name](model, targets)
        compile_model(model)
        trainable[name] = sum(
            int(np.prod(w.shape)) for w in model.trainable_weights
        )
        steps[name] = step(model, inputs, labels)
    times = timing.alternate(steps, rounds=40, seconds=seconds)
    return [
        {"method": row.pop("name"), "trainable": trainable[name], **row}
        for name, row in zip(
            names, timing.ratios(times, reference="limit"), strict=True
        )
    ]


def compile_model(model):
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def step(model, inputs, labels):
    return lambda: model.train_on_batch(inputs, labels)
