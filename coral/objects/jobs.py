"""Work handed to the store's threads: in groups worth the handing over, and never left running after an error."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import ParamSpec, TypeVar

from coral.pool import fulfil
from coral.threads import stop_if_unwanted

P = ParamSpec("P")
T = TypeVar("T")
_MOST_PIECES = 128


def batched(
    pieces: Iterable[T], weigh: Callable[[T], int], nbytes: int, *, most: int | None = _MOST_PIECES
) -> Iterator[list[T]]:
    """Pieces in groups of at least ``nbytes`` bytes, so that small ones share the cost of handing work to a thread.

    Args:
        most: pieces in a group, however small.
    """
    batch: list[T] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += weigh(piece)
        if size >= nbytes or len(batch) == most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def call_off(jobs: Iterable[Future[T]]) -> None:
    """Cancel what has not begun, wait for what has."""
    for job in jobs:
        job.cancel()
    for job in jobs:
        with contextlib.suppress(CancelledError):
            job.exception()


def in_order(started: Iterable[Future[T]], window: int) -> Generator[T, None, None]:
    """The results of jobs, in their order, while at most ``window`` are under way.

    Whatever ends this early, an error or the caller, none of the jobs runs any more afterwards.

    Args:
        started: starts each job when it is asked for it.
    """
    pending: deque[Future[T]] = deque()
    try:
        for job in started:
            pending.append(job)
            stop_if_unwanted()
            if len(pending) >= window:
                yield pending[0].result()
                pending.popleft()
        while pending:
            yield pending[0].result()
            pending.popleft()
    finally:
        call_off(pending)


def done(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Do a job at once, in this thread."""
    future: Future[T] = Future()
    fulfil(future, partial(job, *args, **kwargs))
    return future
