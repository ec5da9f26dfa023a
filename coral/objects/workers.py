"""The threads that hash, encode and decode: how many, how much may be under way, and how they are asked."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from coral.live import Live
from coral.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")
_WINDOW_PER_THREAD = 2
# Batches of 4 MiB, which hold copies where a tensor is not in plain memory: 64 MiB, however many cores there are.
_LARGEST_WINDOW = 16
_NICE = 15


class Workers(Live):
    """Threads that work for whoever reads or writes chunks.

    Args:
        threads: how many; None takes every core.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or _cores()
        self._pools = {quiet: Pool(self.threads, "coral", begin=_be_nice if quiet else None) for quiet in (False, True)}
        self._quiet = threading.local()

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker thread do a job; where there is no thread to be had, the caller's does it."""
        return self._pools[getattr(self._quiet, "is_on", False)].submit(job, *args, **kwargs)

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """What this thread asks of the store meanwhile is done by threads that leave the processor to others."""
        self._quiet.is_on = True
        try:
            yield
        finally:
            self._quiet.is_on = False

    @property
    def window(self) -> int:
        """How many chunks may be under way at once; bounds the memory."""
        return min(_WINDOW_PER_THREAD * self.threads, _LARGEST_WINDOW)


def _be_nice() -> None:
    """Let this thread run when nobody else wants the processor: Linux schedules each thread on its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _cores() -> int:
    # What this process may use; macOS cannot say.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
