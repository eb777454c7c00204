"""Atomic writing: a file is written completely or not at all."""

import contextlib
import errno
import os
import stat
import uuid


def write(path: str, data: bytes) -> None:
    """Writes a temporary file in the folder of `path`, and renames it.

    Readers of `path` find the old file or the new file, even if this process or
    the machine stops at any moment. A replaced file keeps its mode. A killed
    process may leave a file `.keras_ether.*.tmp`.

    Args:
        path: Where to write, string or `PathLike`.
        data: The bytes of the file.

    Raises:
        OSError: if the folder is missing or can't be written to, or if `path`
            is a folder. The error names `path`, which is unchanged.
    """
    check_place(path)
    try:
        # A link keeps pointing at the file.
        _write(os.path.realpath(path), data)
    except OSError as error:
        # The user passed `path`, not the temporary file.
        raise OSError(
            error.errno, error.strerror or str(error), os.fspath(path)
        ) from error


def check_place(path: str) -> None:
    """Checks in advance, as far as possible, that `path` can be written.

    Raises:
        OSError: if `path` is a folder, or its folder is missing.
    """
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    if os.path.isdir(real):
        raise IsADirectoryError(
            errno.EISDIR, "It is a folder: name a file in it", os.fspath(path)
        )
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError(
            errno.ENOTDIR, f"'{folder}' is not a folder", os.fspath(path)
        )
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            errno.ENOENT,
            f"There is no folder '{folder}': create it first",
            os.fspath(path),
        )


def _write(path: str, data: bytes) -> None:
    folder, mode = os.path.dirname(path), _mode_of(path)
    # Without the file's name, which may be as long as names can be.
    temporary = os.path.join(
        folder, f".keras_ether.{uuid.uuid4().hex[:12]}.tmp"
    )

    def opener(name: str, flags: int) -> int:
        # Never readable by more users than the file that it replaces.
        return os.open(name, flags, 0o666 if mode is None else mode)

    try:
        with open(temporary, "xb", opener=opener) as file:
            if mode is not None:
                # The umask does not apply to a file that exists.
                os.chmod(temporary, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(folder)


def _mode_of(path: str) -> int | None:
    """The permissions of a file, `None` if there is none."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def _sync_folder(folder: str) -> None:
    """Syncs the new name to disk too, where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
