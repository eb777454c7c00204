"""Freed memory, returned to the operating system."""

import ctypes
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def one_by_one(items: Iterable[Item]) -> Iterator[Item]:
    """Iterates, and returns to the system what each round has freed.

    For loops over the kernels of a model that make arrays as large as a kernel.
    """
    for item in items:
        yield item
        return_freed()


def return_freed() -> None:
    """Returns freed memory to the system, where the C library is glibc.

    It keeps freed arrays of up to 32 MiB in its heap. Small allocations then
    split these holes, and the arrays of the next layer fit into none of them:
    after a loop over all kernels, the process holds once or twice their memory.
    """
    if _trim is not None:
        _trim(0)


def _glibc_function(name: str) -> Callable | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        # Another C library, or another system.
        return None


_trim = _glibc_function("malloc_trim")
