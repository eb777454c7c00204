"""Adapter files on Hugging Face's hub and on Kaggle, by their own libraries."""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

FILE = "adapter.ether.safetensors"
CARD = "README.md"
HUGGING_FACE = "hf://"
KAGGLE = "kaggle://"
FORMS = (
    "'hf://user/repository' or 'kaggle://user/model/framework/variation', "
    f"followed by '/NAME.safetensors' unless the file is '{FILE}'"
)


@dataclass(frozen=True)
class Handle:
    """Where a file is on a hub.

    Attributes:
        hub: `"hf://"` or `"kaggle://"`.
        repository: Name of the repository or model, as the hub's library takes
            it.
        name: Name of the file in it.
    """

    hub: str
    repository: str
    name: str


def is_handle(filepath: str | os.PathLike) -> bool:
    """Whether a path means a file on a hub."""
    return isinstance(filepath, (str, os.PathLike)) and str(
        os.fspath(filepath)
    ).startswith((HUGGING_FACE, KAGGLE))


def parse(filepath: str | os.PathLike) -> Handle:
    """The parts of a path that `is_handle` takes.

    Raises:
        ValueError: if it is of no form that a hub knows.
    """
    path = os.fspath(filepath)
    hub = HUGGING_FACE if path.startswith(HUGGING_FACE) else KAGGLE
    *repository, name = path.removeprefix(hub).split("/")
    if not name.endswith(".safetensors"):
        repository, name = [*repository, name], FILE
    fits = (1, 2) if hub == HUGGING_FACE else (4, 5)
    if len(repository) not in fits or not all(repository):
        raise ValueError(
            f"The address of an adapter on a hub must be {FORMS}. Received: "
            f"filepath={path!r}"
        )
    return Handle(hub, "/".join(repository), name)


def library(handle: Handle) -> Any:
    """The module that talks to a handle's hub.

    Raises:
        ImportError: if it is not installed.
    """
    name = "huggingface_hub" if handle.hub == HUGGING_FACE else "kagglehub"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"'{handle.hub}' needs the package `{name}`: `pip install {name}`."
        ) from error


def download(filepath: str | os.PathLike) -> str:
    """The path of a local copy of a file on a hub.

    Raises:
        ValueError: if the path is of no form that a hub knows.
        ImportError: if the hub's library is not installed.
        OSError: if the library can't give the file.
    """
    handle = parse(filepath)
    client = library(handle)
    with _named(filepath, "read from"):
        if handle.hub == HUGGING_FACE:
            return client.hf_hub_download(handle.repository, handle.name)
        return client.model_download(handle.repository, path=handle.name)


def upload(
    filepath: str | os.PathLike, write: Callable[[str], None], card: str
) -> None:
    """Makes a file and its card and puts them on a hub.

    On Hugging Face's hub a missing repository is created, and other files in it
    stay. On Kaggle the file becomes a new version of the model.

    Args:
        filepath: String, a path that `is_handle` takes.
        write: Function from a local path that writes the file there.
        card: String, the content of `README.md`.

    Raises:
        ValueError: if the path is of no form that a hub knows.
        ImportError: if the hub's library is not installed.
        OSError: if the library can't put the files there.
    """
    handle = parse(filepath)
    client = library(handle)
    with tempfile.TemporaryDirectory() as folder:
        write(os.path.join(folder, handle.name))
        with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
            file.write(card)
        with _named(filepath, "written to"):
            if handle.hub == HUGGING_FACE:
                client.create_repo(handle.repository, exist_ok=True)
                client.upload_folder(
                    repo_id=handle.repository, folder_path=folder
                )
            else:
                client.model_upload(handle.repository, folder)


@contextlib.contextmanager
def _named(filepath: str | os.PathLike, done: str) -> Iterator[None]:
    """Adds the address to any error of a hub's library."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"'{os.fspath(filepath)}' can't be {done} the hub: "
            f"{type(error).__name__}: {error}"
        ) from error
