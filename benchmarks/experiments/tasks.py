"""The tasks: data, model, size, and what is measured.

`sst2`, `reviews`, `intents`: all-MiniLM-L6-v2 learns to classify texts.
`language`: SmolLM2-135M-Instruct learns to continue film reviews.
`pictures`: DINOv2 ViT-S/14 learns to classify CIFAR-10's test pictures.
`gemma`: Gemma 3 270M learns to continue film reviews.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field

from benchmarks.experiments import datasets
from benchmarks.experiments import models
from examples.real_models import gemma3_270m
from examples.real_models import smollm2_135m_instruct


@dataclass(frozen=True)
class Task:
    """What a model learns.

    Attributes:
        label: Its name in tables and plots.
        trainer: Function from the options to an object whose `run` takes the
            settings of a run and returns what was measured.
        options: Options of the command line that differ from the others'.
        is_loss: Whether a loss in nats is measured, not an accuracy.
        has_head: Whether a new head trains.
    """

    label: str
    trainer: Callable
    options: dict = field(default_factory=dict)
    is_loss: bool = False
    has_head: bool = True


def _texts(options):
    classify = importlib.import_module("benchmarks.experiments.classify")
    data = importlib.import_module("benchmarks.experiments.data")
    base = models.text_classifier(options.preset, options.length)
    return classify.Trainer(base, data.load(options, base.preprocessor))


def _language(options, pretrained):
    language = importlib.import_module("benchmarks.experiments.language_model")
    preset = options.preset or pretrained.preset()
    base = models.language_model(preset, options.length)
    return language.Trainer(base, language.load(options, base.preprocessor))


def _pictures(options):
    pictures = importlib.import_module("benchmarks.experiments.pictures")
    return pictures.trainer(options)


SHORT = {
    "samples": 512,
    "dev_samples": 200,
    "test_samples": 400,
    "length": 32,
    "epochs": 2,
    "batch_size": 8,
}
TASKS = {
    "sst2": Task("SST-2", _texts, SHORT),
    "reviews": Task("film reviews", _texts, SHORT),
    "intents": Task(
        "BANKING77",
        _texts,
        {
            "samples": 2500,
            "dev_samples": 500,
            "test_samples": 1540,
            "length": 32,
            "epochs": 3,
            "batch_size": 16,
        },
    ),
    "language": Task(
        "SmolLM2 on film reviews",
        functools.partial(_language, pretrained=smollm2_135m_instruct),
        {
            "samples": 192,
            "dev_samples": 96,
            "test_samples": 192,
            "length": 40,
            "epochs": 2,
            "batch_size": 8,
            "schedule": "linear",
        },
        is_loss=True,
        has_head=False,
    ),
    "pictures": Task(
        "DINOv2 on CIFAR-10",
        _pictures,
        {
            "samples": 300,
            "length": 0,
            "dev_samples": 100,
            "test_samples": 400,
            "epochs": 2,
            "batch_size": 8,
        },
    ),
    "gemma": Task(
        "Gemma 3 270M on film reviews",
        functools.partial(_language, pretrained=gemma3_270m),
        {
            "samples": 96,
            "dev_samples": 24,
            "test_samples": 48,
            "length": 40,
            "epochs": 2,
            "batch_size": 8,
        },
        is_loss=True,
        has_head=False,
    ),
}


def data_name(options):
    """The data's name in the settings of a run: other files, other runs."""
    if options.task == "pictures":
        return "CIFAR-10's test pictures"
    return datasets.name(options)
