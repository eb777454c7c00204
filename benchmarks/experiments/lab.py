"""What experiments share: options, finished runs, doing the missing ones."""

import json
import multiprocessing
from concurrent import futures

import keras
import numpy as np
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

from benchmarks import report
from benchmarks.experiments import language_model
from benchmarks.experiments import training
from benchmarks.experiments.__main__ import part_name
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.store import Store

# What a run trains, by experiment; the others train classifiers.
TASKS = {"language": language_model}


class Lab:
    """Gives the results of runs, and does those that are missing.

    Args:
        options: The command line's, see `benchmarks.experiments.__main__`.
    """

    def __init__(self, options):
        self.options = options
        self.task = TASKS.get(options.experiment, training)
        self.store = Store(options.results / "runs.jsonl")
        self.environment = report.environment(
            keras.backend.backend(), options.threads
        )
        self._trainer = None

    def settings(self, method, learning_rate=0.0, seed=0, rank_blocks=None):
        """What decides the outcome of a run, and is its key on disk."""
        options = self.options
        return {
            "method": method,
            "learning_rate": learning_rate,
            "seed": seed,
            "rank_blocks": (rank_blocks or options.rank_blocks)
            if METHODS[method].has_blocks
            else 1,
            "samples": options.samples,
            "dev_samples": options.dev_samples,
            "test_samples": options.test_samples,
            "length": options.length,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "backend": keras.backend.backend(),
            **self.task.settings(options),
        }

    def grid(self, methods):
        """Settings of every method, rate and seed, one seed after another."""
        return [
            self.settings(method, rate, seed)
            for seed in self.options.seeds
            for method in methods
            for rate in self.options.learning_rates
        ]

    @property
    def trainer(self):
        """The model and the data, loaded when the first run needs them."""
        if self._trainer is None:
            self._trainer = self.task.trainer(self.options)
        return self._trainer

    @property
    def majority(self):
        """Accuracy, in %, of always giving the test part's commonest answer."""
        labels = self.trainer.data.test[1]
        return 100 * np.bincount(labels).max() / len(labels)

    def results(self, wanted, title):
        """The results of runs, each its settings and what was measured.

        Args:
            wanted: List of settings. Those that are on disk are not run again.
            title: String, what stands before the progress bar.
        """
        missing = [s for s in wanted if self.store.find(s) is None]
        if self.options.only_finished:
            wanted = [s for s in wanted if s not in missing]
            missing = []
        done = len(wanted) - len(missing)
        with _progress() as progress:
            task = progress.add_task(
                title, total=len(wanted), completed=done, last=""
            )
            for settings, measured in self._do(missing):
                self.store.add(settings, measured, self.environment)
                progress.update(task, advance=1, last=_describe(settings))
        records = [self.store.find(settings) for settings in wanted]
        return [r["settings"] | r["measured"] for r in records]

    def _do(self, missing):
        """Yields settings and what was measured, as the runs finish."""
        jobs = min(self.options.jobs, len(missing))
        if jobs < 2:
            for settings in missing:
                yield settings, self.trainer.run(settings)
            return
        # Not forked: a backend with threads does not survive it.
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(
            jobs, context, _start_worker, [self.options]
        ) as pool:
            runs = [pool.submit(_work, settings) for settings in missing]
            try:
                for run in futures.as_completed(runs):
                    yield run.result()
            finally:
                # Of an error or an interruption: what waits is not begun.
                pool.shutdown(cancel_futures=True)

    def conclude(self, name, tables, figure, notes=()):
        """Prints tables and writes them and the plot."""
        for title, rows in tables.items():
            print(f"\n{title}\n\n{report.markdown(rows)}")
        for note in notes:
            print(f"\n{note}")
        name = part_name(name, self.options.dataset)
        folder = self.options.results
        folder.mkdir(parents=True, exist_ok=True)
        written = {
            "command": self.options.command,
            "environment": self.environment,
            "tables": tables,
            "notes": list(notes),
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        figure.savefig(folder / f"{name}.png", dpi=120)
        print(f"\nWritten to {path} and {folder / f'{name}.png'}")


def mean(results, key):
    """Mean over runs of what was measured; `None` if one has no value."""
    values = [result[key] for result in results]
    return None if None in values else float(np.mean(values))


def by_rate(results, method):
    """The runs of a method, by its rates in order."""
    runs = {}
    for result in results:
        if result["method"] == method:
            runs.setdefault(result["learning_rate"], []).append(result)
    return dict(sorted(runs.items()))


def best_rate(results, method):
    """The rate of the highest mean accuracy on the sentences to choose by."""
    runs = by_rate(results, method)
    return max(runs, key=lambda rate: mean(runs[rate], "dev_accuracy"))


def _start_worker(options):
    global _lab
    _lab = Lab(options)


def _work(settings):
    return settings, _lab.trainer.run(settings)


def _describe(settings):
    label = METHODS[settings["method"]].label
    return f"{label}, {settings['learning_rate']:g}, seed {settings['seed']}"


def _progress():
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("last: {task.fields[last]}"),
    )
