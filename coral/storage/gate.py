"""A lock that many hold together and one holds alone, in which whoever wants it alone is not kept out for ever.

A flock has no queue: while others come and go, there may never be a moment when nobody holds it. So who wants to share
it passes a second lock, for a moment, which who wants it alone keeps.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from coral.storage.locks import file_lock

SHARING_SECONDS = 60.0
# Less than those who share it wait: nobody's commit may fail because garbage collection waits for somebody else.
ALONE_SECONDS = 20.0


class _Held:
    """How often this process shares each lock; whoever does already need not, and must not, queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._counts: Counter[Path] = Counter()

    def change(self, path: Path, by: int) -> None:
        with self._lock:
            self._of_this_process()[path] += by

    def is_held(self, path: Path) -> bool:
        with self._lock:
            return self._of_this_process()[path] > 0

    def _of_this_process(self) -> Counter[Path]:
        if self._pid != os.getpid():
            # A forked child holds none of its parent's locks.
            self._pid, self._counts = os.getpid(), Counter()
        return self._counts


_held = _Held()


class Gate:
    """The lock of one file.

    Args:
        path: the lock file; another beside it, ``<name>.gate``, is the queue.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue = path.with_name(f"{path.name}.gate")

    @contextlib.contextmanager
    def shared(self, *, timeout: float = SHARING_SECONDS) -> Iterator[None]:
        """Hold it together with others. Raises LockedError."""
        owner = os.getpid()
        with contextlib.ExitStack() as stack:
            with contextlib.ExitStack() as queue:
                if not _held.is_held(self.path):
                    queue.enter_context(file_lock(self._queue, shared=True, timeout=timeout))
                stack.enter_context(file_lock(self.path, shared=True, timeout=timeout))
            _held.change(self.path, 1)
            try:
                yield
            finally:
                if os.getpid() == owner:
                    _held.change(self.path, -1)

    @contextlib.contextmanager
    def alone(self, *, timeout: float = ALONE_SECONDS) -> Iterator[None]:
        """Hold it while nobody else does; those who come meanwhile wait. Raises LockedError."""
        with file_lock(self._queue, timeout=timeout), file_lock(self.path, timeout=timeout):
            yield
