import errno
import os
import pathlib
import re
import stat

import pytest

from keras_ether.saving import atomic_write

pytestmark = pytest.mark.once


def test_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.safetensors"
    for data in (b"first", b"second"):
        atomic_write.write(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atomic_write.write("a.safetensors", b"data")
    assert (tmp_path / "a.safetensors").read_bytes() == b"data"


def test_link_goes_on_pointing_at_its_file(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    atomic_write.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_file_keeps_its_mode(mode, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    path.chmod(mode)
    modes = []
    replace = os.replace

    def look(beside, path):
        modes.append(stat.S_IMODE(os.stat(beside).st_mode))
        replace(beside, path)

    monkeypatch.setattr(os, "replace", look)
    atomic_write.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [stat.S_IMODE(path.stat().st_mode), *modes] == [mode, mode]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write.write(tmp_path / "a.safetensors", b"new")
    finally:
        os.umask(before)
    found = stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode)
    assert found == 0o640


@pytest.mark.parametrize("letter", ["a", "ä"])
def test_longest_name(letter, tmp_path):
    stem = letter * ((255 - len(".safetensors")) // len(letter.encode()))
    path = tmp_path / f"{stem}.safetensors"
    for data in (b"old", b"new"):
        atomic_write.write(path, data)
        assert path.read_bytes() == data
    too_long = tmp_path / f"{stem}{letter}.safetensors"
    refused(too_long, OSError, os.strerror(errno.ENAMETOOLONG))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    atomic_write.write(path, b"old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def refused(path, error, message):
    """The error of writing there; what it says is about the path given."""
    with pytest.raises(error, match=message) as caught:
        atomic_write.write(path, b"data")
    assert caught.value.filename == os.fspath(path)
    assert ".tmp" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("relative", [False, True])
def test_missing_folder_is_named(relative, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = pathlib.Path("no", "where") if relative else tmp_path / "no/where"
    message = f"no folder .*{re.escape(os.path.join('no', 'where'))}.*create it"
    refused(folder / "a.safetensors", FileNotFoundError, message)
    refused(str(folder / "a.safetensors"), FileNotFoundError, message)
    assert os.listdir(tmp_path) == []


def test_folder_is_no_file(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    refused(tmp_path / "a.safetensors", IsADirectoryError, "It is a folder")
    assert os.listdir(tmp_path / "a.safetensors") == []
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "a.safetensors"
    refused(path, NotADirectoryError, "is not a folder")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.EACCES, PermissionError),
        (errno.EROFS, OSError),
        (errno.ENAMETOOLONG, OSError),
    ],
)
def test_file_that_cannot_be_opened_is_named(
    code, error, tmp_path, monkeypatch
):
    """As in a folder without the right to write, which root has anyway."""

    def fail(path, mode, **_):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(atomic_write, "open", fail, raising=False)
    found = refused(tmp_path / "a.safetensors", error, os.strerror(code))
    assert found.errno == code
    assert os.listdir(tmp_path) == []
