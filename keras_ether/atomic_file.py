"""Files that are there as a whole or not at all."""

import contextlib
import os
import uuid


def write(path, data: bytes):
    """Writes a file beside `path` and renames it.

    Whoever reads `path` finds the file from before or the new one, even if this
    process or the machine stops at any moment. A process that is killed may
    leave a file `.NAME.*.tmp` behind.

    Args:
        path: Where to write, string or `PathLike`.
        data: The bytes of the file.

    Raises:
        OSError: if the folder can't be written to. `path` is then as it was.
    """
    # A link goes on pointing at the file.
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise
    _sync_folder(folder)


def _sync_folder(folder):
    """Has the new name on the disk too, where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
