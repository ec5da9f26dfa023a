"""Work handed to the store's threads: in groups worth the handing over, and never left running after an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_MOST_PIECES = 128


def batched(pieces: Iterable[T], weigh: Callable[[T], int], nbytes: int) -> Iterator[list[T]]:
    """Pieces in groups of at least ``nbytes`` bytes, so that small ones share the cost of handing work to a thread."""
    batch: list[T] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += weigh(piece)
        if size >= nbytes or len(batch) >= _MOST_PIECES:
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


def done(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Do a job at once, in this thread."""
    future: Future[T] = Future()
    try:
        future.set_result(job(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
    return future
