"""A lock that many hold together and one holds alone, in which whoever wants it alone is not kept out for ever.

A flock has no queue: while others come and go, there may never be a moment when nobody holds it. So who wants to share
it passes a second lock, for a moment, which who wants it alone keeps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from coral.storage.locks import file_lock

SHARING_SECONDS = 60.0
# Less than those who share it wait: nobody's commit may fail because garbage collection waits for somebody else.
ALONE_SECONDS = 20.0

_held: dict[tuple[int, str], set[object]] = {}
"""Who in a process shares which lock. A forked child holds none of its parent's.

No lock guards it: a holder that was dropped is let go by Python's garbage collector, which may come at any moment, even
while the same thread looks in here. Adding one and taking it out are one step each, and no two holders are the same.
"""


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
        with contextlib.ExitStack() as stack:
            holders, holder = _held.setdefault((os.getpid(), os.fspath(self.path)), set()), object()
            with contextlib.ExitStack() as queue:
                # Whoever shares it already need not queue, and must not.
                if not holders:
                    queue.enter_context(file_lock(self._queue, shared=True, timeout=timeout))
                stack.enter_context(file_lock(self.path, shared=True, timeout=timeout))
            holders.add(holder)
            try:
                yield
            finally:
                holders.discard(holder)

    @contextlib.contextmanager
    def alone(self, *, timeout: float = ALONE_SECONDS) -> Iterator[None]:
        """Hold it while nobody else does; those who come meanwhile wait. Raises LockedError."""
        with file_lock(self._queue, timeout=timeout), file_lock(self.path, timeout=timeout):
            yield
