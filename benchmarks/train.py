"""Training steps by method, over the limit."""

import functools

import keras
import numpy as np

from benchmarks import models
from benchmarks import report
from benchmarks import timing
from benchmarks import variants

CASES = {
    "minilm": (
        "MiniLM's size, 8 x 128 tokens, all linear maps",
        models.minilm,
        "all-linear",
    ),
    "minilm-default": (
        "MiniLM's size, 8 x 128 tokens, default targets",
        models.minilm,
        None,
    ),
    "decoder": (
        "Decoder, 4 x 256 tokens, all linear maps",
        models.decoder,
        "all-linear",
    ),
    "decoder-int8": (
        "Decoder with an int8 base, 4 x 256 tokens, all linear maps",
        functools.partial(models.quantized_decoder, "int8"),
        "all-linear",
    ),
    "decoder-int4": (
        "Decoder with an int4 base, 4 x 256 tokens, all linear maps",
        functools.partial(models.quantized_decoder, "int4"),
        "all-linear",
    ),
    "bert-base": (
        "BERT-base's size, 8 x 128 tokens, all linear maps",
        models.bert_base,
        "all-linear",
    ),
}


def main(args):
    for case in ("minilm",) if args.quick else args.cases or CASES:
        title, build, targets = CASES[case]
        names = tuple(variants.VARIANTS)
        if case.endswith(("int8", "int4")):
            names = variants.QUANTIZED
        elif args.quick:
            names = variants.QUICK
        seconds = 60 if args.quick else args.seconds
        rows = measure(build, targets, names, seconds)
        report.save(f"train-{case}", args, {title: rows})
        keras.backend.clear_session()


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
        {"method": name, "trainable": trainable[name], **row}
        for name, row in zip(
            names, timing.ratios(times, "limit", "method"), strict=True
        )
    ]


def compile_model(model, **options):
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )


def step(model, inputs, labels):
    return lambda: model.train_on_batch(inputs, labels)
