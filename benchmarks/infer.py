"""Inference: the base, with adapters active, merged."""

import keras

import keras_ether
from benchmarks import models
from benchmarks import report
from benchmarks import timing


def main(args):
    cases = {"MiniLM's size, 8 x 128 tokens": models.minilm}
    if not args.quick:
        cases |= {
            "Decoder, 4 x 256 tokens": models.decoder,
            "BERT-base's size, 8 x 128 tokens": models.bert_base,
        }
    seconds = 30 if args.quick else args.seconds
    tables = {}
    for title, build in cases.items():
        steps = {"base": predict(build)}
        for method in ("ether", "ether+"):
            for n in (4,) if args.quick else (1, 4, 32):
                steps[f"{method.upper()} n={n}, active"] = predict(
                    build, method, n
                )
        # Merged last: it runs the base's own classes, and would share the
        # luck of standing beside the base in every round.
        steps["ETHER n=4, merged"] = predict(build, "ether", 4, merge=True)
        times = timing.alternate(steps, rounds=100, seconds=seconds)
        tables[title] = timing.ratios(times, "base", "model")
        keras.backend.clear_session()
    report.save("infer", args, tables)


def predict(build, method=None, rank_blocks=None, merge=False):
    model, inputs, _ = build()
    if method is not None:
        keras_ether.apply(
            model,
            method=method,
            rank_blocks=rank_blocks,
            targets="all-linear",
            seed=0,
        )
    if merge:
        keras_ether.merge(model)
    return lambda: model.predict_on_batch(inputs)
