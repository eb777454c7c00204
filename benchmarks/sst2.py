"""Accuracy on SST-2 by method and learning rate, all-MiniLM-L6-v2.

    python -m benchmarks.sst2 --data FOLDER [--methods ether ether+ lora head]

`FOLDER` holds `train.tsv` and `dev.tsv`, a sentence and a label a line. Every
run starts from the same pretrained weights, head and batches, adapts the same
linear maps and decays its rate linearly to zero. A batch holds sentences of
like length and is cut after its longest. Results are appended to a JSON-lines
file; runs that are in it already are not done again.
"""

import argparse
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf

import keras_ether
from examples.real_models import minilm

LEARNING_RATES = {
    "ether": (3e-3, 1e-2, 3e-2),
    "ether+": (2e-3, 5e-3, 1e-2),
    "lora": (5e-4, 1e-3, 2e-3),
    "head": (1e-3, 3e-3, 1e-2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(LEARNING_RATES))
    parser.add_argument("--learning-rates", nargs="+", type=float)
    parser.add_argument("--rank-blocks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("sst2.jsonl")
    )
    args = parser.parse_args()
    done = [json.loads(line) for line in _lines(args.output)]
    train, dev = (read(args.data / f"{n}.tsv", args) for n in ("train", "dev"))
    for method in args.methods:
        for rate in args.learning_rates or LEARNING_RATES[method]:
            settings = {
                "method": method,
                "learning_rate": rate,
                "rank_blocks": args.rank_blocks,
                "epochs": args.epochs,
                "batch_size": args.batch_size,
                "length": args.length,
                "samples": args.samples,
                "seed": args.seed,
            }
            if any(settings.items() <= result.items() for result in done):
                continue
            result = {**settings, **run(train, dev, **settings)}
            with args.output.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def run(train, dev, method, learning_rate, **settings):
    """Fine-tunes once and returns what was measured."""
    keras.utils.set_random_seed(settings["seed"])
    model = build_model()
    adapt(model, method, settings["rank_blocks"], settings["seed"])
    batch_size = settings["batch_size"]
    steps = -(-len(train[1]) // batch_size) * settings["epochs"]
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.PolynomialDecay(
                learning_rate, steps, end_learning_rate=0.0
            )
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    history = model.fit(
        batches(*train, batch_size, settings["seed"]),
        validation_data=batches(*dev, batch_size, settings["seed"]),
        epochs=settings["epochs"],
        verbose=0,
    )
    return {
        "trainable": sum(
            int(np.prod(w.shape)) for w in model.trainable_weights
        ),
        "dev_accuracy": history.history["val_accuracy"],
        "train_loss": history.history["loss"],
        "seconds": time.perf_counter() - start,
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "keras_hub": keras_hub.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def build_model():
    return keras_hub.models.BertTextClassifier(
        keras_hub.models.Backbone.from_preset(minilm_folder()), num_classes=2
    )


def adapt(model, method, rank_blocks, seed):
    """Leaves the method's numbers and the head trainable."""
    if method in ("ether", "ether+"):
        keras_ether.apply(
            model,
            method=method,
            rank_blocks=rank_blocks,
            targets="all-linear",
            seed=seed,
        )
        return
    if method == "lora":
        linear = keras_ether.plan(
            model, targets="all-linear", print_fn=lambda table: None
        )
        names = {row.path.rpartition("/")[2] for row in linear.rows}
        model.backbone.enable_lora(8, target_layer_names=sorted(names))
    else:
        model.backbone.trainable = False


def minilm_folder():
    return minilm.preset()


def read(path, args):
    """Token ids, as the model takes them, and labels of a TSV file."""
    lines = _lines(path)[: args.samples]
    pairs = [line.rsplit("\t", 1) for line in lines]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.Tokenizer.from_preset(minilm_folder()),
        sequence_length=args.length,
    )
    tokens = preprocessor([sentence for sentence, _ in pairs])
    return (
        {k: keras.ops.convert_to_numpy(v) for k, v in tokens.items()},
        np.array([label for _, label in pairs], dtype="int32"),
    )


def batches(inputs, labels, batch_size, seed):
    """A dataset of shuffled batches of like length, other ones each epoch."""
    lengths = inputs["padding_mask"].sum(axis=1)
    rng = np.random.default_rng(seed)

    def draw():
        order = rng.permutation(len(labels))
        pool = 16 * batch_size
        order = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in np.split(order, range(pool, len(order), pool))
            ]
        )
        parts = np.split(order, range(batch_size, len(order), batch_size))
        for index in rng.permutation(len(parts)):
            part = parts[index]
            length = lengths[part].max()
            yield {k: v[part, :length] for k, v in inputs.items()}, labels[part]

    signature = (
        {k: tf.TensorSpec([None, None], v.dtype) for k, v in inputs.items()},
        tf.TensorSpec([None], labels.dtype),
    )
    dataset = tf.data.Dataset.from_generator(draw, output_signature=signature)
    count = -(-len(labels) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def _lines(path):
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    main()
