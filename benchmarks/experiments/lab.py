"""What a task's runs share: options, finished runs, doing the missing ones."""

import json

import keras
import numpy as np

from benchmarks import report
from benchmarks.experiments import tasks
from benchmarks.experiments.store import Store


class Lab:
    """Gives the results of runs, and does those that are missing.

    Args:
        options: The command line's, see `benchmarks.experiments.__main__`.
    """

    def __init__(self, options):
        self.options = options
        self.task = tasks.TASKS[options.task]
        for name, value in self.task.options.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        self.store = Store(options.results / "runs.jsonl")
        self.environment = report.environment(
            keras.backend.backend(), options.threads
        )
        self._trainer = None
        self._shown = []

    def settings(self, method, learning_rate=None, head_rate=None, seed=0):
        """What decides the outcome of a run, and is its key on disk."""
        options = self.options
        return {
            "task": options.task,
            "data": tasks.data_name(options),
            "preset": options.preset,
            "method": method,
            "learning_rate": learning_rate,
            "head_rate": head_rate if self.task.has_head else None,
            "seed": seed,
            "rank_blocks": options.rank_blocks if "ether" in method else None,
            "samples": options.samples,
            "dev_samples": options.dev_samples,
            "test_samples": options.test_samples,
            "length": options.length,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "schedule": options.schedule or "constant",
            "backend": keras.backend.backend(),
        }

    @property
    def trainer(self):
        """The model and the data, loaded when the first run needs them."""
        if self._trainer is None:
            self._trainer = self.task.trainer(self.options)
        return self._trainer

    @property
    def unit(self):
        """What is measured."""
        if self.task.is_loss:
            return "test loss in nats per token"
        return "test accuracy in %"

    def rates_on_disk(self, method, head_rate):
        """The learning rates of a method that runs on disk have."""
        return {
            record["settings"]["learning_rate"]
            for record in self.store.runs.values()
            if record["settings"]
            == self.settings(
                method,
                record["settings"]["learning_rate"],
                head_rate,
                record["settings"]["seed"],
            )
        }

    def results(self, wanted):
        """The results of runs, each its settings and what was measured.

        Args:
            wanted: List of settings. Those that are on disk are not run again.
        """
        done = []
        for settings in wanted:
            record = self.store.find(settings)
            if record is None and not self.options.only_finished:
                measured = self.trainer.run(settings)
                self.store.add(settings, measured, self.environment)
                record = self.store.find(settings)
                print(describe(record), flush=True)
            if record is not None:
                self._shown.append(record["environment"])
                done.append(record["settings"] | record["measured"])
        return done

    def score(self, run, part="test"):
        """What is better where it is higher; `-inf` where training ran away."""
        value = run[part]
        if value is None:
            return -np.inf
        return -value if self.task.is_loss else 100 * value

    def conclude(self, tables, figure, notes=()):
        """Prints tables and writes them and the plot."""
        for title, rows in tables.items():
            print(f"\n{title}\n\n{report.markdown(rows)}")
        folder = self.options.results
        folder.mkdir(parents=True, exist_ok=True)
        written = {
            "command": self.options.command,
            # That of the newest run.
            "environment": max(
                self._shown,
                key=lambda shown: shown["date"],
                default=self.environment,
            ),
            "tables": tables,
            "notes": list(notes),
        }
        path = folder / f"{self.options.task}.json"
        path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        figure.savefig(path.with_suffix(".png"), dpi=120)
        print(f"\nWritten to {path} and {path.with_suffix('.png')}")


def describe(record):
    """One line about a finished run."""
    settings, measured = record["settings"], record["measured"]
    return (
        f"{settings['task']} {settings['method']} rate "
        f"{settings['learning_rate']} head {settings['head_rate']} seed "
        f"{settings['seed']}: dev {measured['dev']:.4g} test "
        f"{measured['test']:.4g} ({measured['seconds']:.0f} s)"
        if measured["dev"] is not None and measured["test"] is not None
        else f"{settings['method']} {settings['learning_rate']} ran away"
    )
