"""The lock of a bank's rows: shared by calls, exclusive for changes."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator


class Access:
    """A readers-writer lock: shared by calls, exclusive for a change.

    A thread may acquire it again. A waiting change precedes calls that begin
    after it, and calls that waited for a change precede the next one.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing: Counter[int] = Counter()
        self._owner: int | None = None
        self._depth = 0
        self._changes_waiting = self._calls_waiting = 0
        # Calls that waited for the last change, and have not begun yet.
        self._admitted = 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """A context in which no row changes, but by this thread."""
        me = threading.get_ident()
        with self._condition:
            if self._owner != me and not self._sharing[me]:
                self._wait_for_changes()
            self._sharing[me] += 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing[me] -= 1
                # Entries of finished threads must not accumulate.
                self._sharing += Counter()
                self._condition.notify_all()

    def _wait_for_changes(self) -> None:
        self._calls_waiting += 1
        try:
            self._condition.wait_for(
                lambda: (
                    self._owner is None
                    and (self._admitted or not self._changes_waiting)
                )
            )
        finally:
            self._calls_waiting -= 1
            self._admitted = min(
                self._calls_waiting, max(self._admitted - 1, 0)
            )
            self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A context in which no other thread uses the rows.

        Raises:
            RuntimeError: if this thread is within `shared`: the rows that its
                call uses would change.
        """
        me = threading.get_ident()
        with self._condition:
            if self._owner != me:
                if self._sharing[me]:
                    raise RuntimeError(
                        "A bank can't be changed within one of its own calls: "
                        "wait until the call has returned."
                    )
                self._changes_waiting += 1
                try:
                    self._condition.wait_for(
                        lambda: (
                            self._owner is None
                            and not self._admitted
                            and not +self._sharing
                        )
                    )
                finally:
                    self._changes_waiting -= 1
                self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._condition:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._admitted = self._calls_waiting
                    self._condition.notify_all()
