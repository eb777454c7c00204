"""Returning freed memory to the operating system."""

import ctypes
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def one_by_one(items: Iterable[Item]) -> Iterator[Item]:
    """Iterates, and returns freed memory to the system after each item.

    It is for loops over the kernels of a model that make arrays of a kernel's
    size.
    """
    for item in items:
        yield item
        return_freed()


def return_freed() -> None:
    """Returns freed memory to the system, where the C library is glibc.

    glibc keeps freed arrays of up to 32 MiB in its heap. Small allocations then
    split these free areas, so the arrays of the next layer don't fit. After a
    loop over all kernels, the process holds once or twice their memory.
    """
    if _trim is not None:
        _trim(0)


_trim: Callable | None
try:
    _trim = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError, TypeError):
    # Another C library, or another system.
    _trim = None
